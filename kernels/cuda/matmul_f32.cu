// Few rows of f32 activations by weights of any dtype, every product and sum in f32.
//
// A warp computes one output for up to four rows: its lanes read the weights' row in pieces of 16
// bytes (four lanes a unit of 128 or 256 values, eight units at a time), decode them exactly and
// multiply by x, which comes from L1; a butterfly adds the lanes. Memory: each weight byte once per
// four rows. The roof is the memory's read bandwidth for f32 weights (1.2e12 weights/s at 4.8 TB/s
// need 1.2e12 multiply-adds a row); packed weights are bound by decoding, about six instructions
// each: f32 activations are for f32 checkpoints and for comparison, not for speed.
#include "kernels/cuda/matmul_parts.cuh"

namespace pergola {
namespace {

constexpr int kWarps = 8;

// Four values of x.
__device__ __forceinline__ void LoadF32x4(const InputView& x, int64_t row, int64_t k,
                                          float* values) {
  const int64_t column = k - x.lead;
  const float* from = static_cast<const float*>(x.x) + row * x.columns;
  if (x.vectors) {
    float4 v = make_float4(0, 0, 0, 0);
    if (row < x.rows && column >= 0 && column < x.columns) {
      v = *reinterpret_cast<const float4*>(from + column);
    }
    values[0] = v.x;
    values[1] = v.y;
    values[2] = v.z;
    values[3] = v.w;
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t at = column + j;
    values[j] = row < x.rows && at >= 0 && at < x.columns ? from[at] : 0.0F;
  }
}

template <DType kD, int kRows>
__global__ void __launch_bounds__(kWarps* kWarpThreads) F32ProductKernel(ProductParams params) {
  BeginKernel();
  using F = Format<kD>;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpThreads, t = lane % 4;
  const int64_t output = static_cast<int64_t>(blockIdx.y) * kWarps + thread / kWarpThreads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kRows;
  if (output >= params.y.outputs) return;  // the whole warp, and the block has no barrier
  const uint8_t* row = params.w.data + output * params.shape.stride;
  float sums[kRows] = {};
  for (int64_t unit = lane / 4; unit < params.shape.units; unit += kWarpThreads / 4) {
    typename F::Raw raw;
    F::Load(raw, row, params.shape, unit, t);
#pragma unroll
    for (int p = 0; p < F::kChunks; ++p) {
      float w[8];
      DecodeOctet<F>(raw, p, w);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float x[8];
        LoadF32x4(params.x, first_row + r, unit * F::kUnit + F::First(p, t), x);
        LoadF32x4(params.x, first_row + r, unit * F::kUnit + F::Second(p, t), x + 4);
#pragma unroll
        for (int j = 0; j < 8; ++j) sums[r] = fmaf(x[j], w[j], sums[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float sum = WarpSum(sums[r]);
    if (lane == 0 && first_row + r < params.x.rows) {
      StoreProduct(params.y, first_row + r, output, sum);
    }
  }
}

template <DType kD, int kRows>
void LaunchF32(const CudaContext& context, const ProductParams& params) {
  const dim3 grid(static_cast<unsigned>((params.x.rows + kRows - 1) / kRows),
                  static_cast<unsigned>((params.y.outputs + kWarps - 1) / kWarps));
  Launch(F32ProductKernel<kD, kRows>, grid, kWarps * kWarpThreads, 0, context, params);
}

template <DType kD>
void F32Product(const CudaContext& context, const CudaMatmulArgs& args) {
  const ProductParams params = ProductParamsOf(args);
  if (params.x.rows == 1) return LaunchF32<kD, 1>(context, params);
  LaunchF32<kD, 4>(context, params);
}

}  // namespace

void MatmulF32Cuda(const CudaContext& context, const CudaMatmulArgs& args) {
  PERGOLA_CHECK(args.x.dtype() == DType::kF32);
  switch (args.w.dtype) {
    case DType::kF32:
      return F32Product<DType::kF32>(context, args);
    case DType::kBF16:
      return F32Product<DType::kBF16>(context, args);
    case DType::kF16:
      return F32Product<DType::kF16>(context, args);
    case DType::kInt8:
      return F32Product<DType::kInt8>(context, args);
    case DType::kQ8_0:
      return F32Product<DType::kQ8_0>(context, args);
    case DType::kQ4_0:
      return F32Product<DType::kQ4_0>(context, args);
    case DType::kQ4_1:
      return F32Product<DType::kQ4_1>(context, args);
    case DType::kQ5_0:
      return F32Product<DType::kQ5_0>(context, args);
    case DType::kQ5_1:
      return F32Product<DType::kQ5_1>(context, args);
    case DType::kIQ4_NL:
      return F32Product<DType::kIQ4_NL>(context, args);
    case DType::kQ2_K:
      return F32Product<DType::kQ2_K>(context, args);
    case DType::kQ3_K:
      return F32Product<DType::kQ3_K>(context, args);
    case DType::kQ4_K:
      return F32Product<DType::kQ4_K>(context, args);
    case DType::kQ5_K:
      return F32Product<DType::kQ5_K>(context, args);
    default:
      PERGOLA_CHECK(args.w.dtype == DType::kQ6_K);
      return F32Product<DType::kQ6_K>(context, args);
  }
}

}  // namespace pergola
