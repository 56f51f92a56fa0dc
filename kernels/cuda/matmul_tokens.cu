// int8 weights by int8 tokens (W8A8), kernels/int8.h: each token's values become int8 in steps of
// its own, but for its outliers, which are multiplied as they are and added in f32 (Dettmers et
// al., LLM.int8(), arXiv:2208.07339, section 3).
//
// First a block per token finds the limit, the step, q and a bit per value that says outlier: the
// token is read three times (from L1 and L2 but the first), q and bits are written, 9/16 of a bf16
// token. The limit has the reference's bits, for an outlier more or less is a different result: its
// sixteen sums run in sixteen threads, each in order.
// Then the product, as kernels/cuda/matmul_tensor.cuh has it, on the tensor cores' int8: weights
// are read once per 32 tokens. Where any of eight tokens has outliers within 128 values, a second
// product of these values alone runs with weights and x as 16-bit floats: both exact. The roof is
// the memory's bandwidth up to 32 tokens; beyond, the weights come from L2.
#include "kernels/cuda/matmul_parts.cuh"

namespace pergola {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kParts = 16;  // kInt8SumParts of kernels/int8.h
constexpr int kUnit = 128;
constexpr int kUnitMaskBytes = kUnit / 8;
constexpr int64_t kAlignment = 256;
constexpr int kF32Rows = 4;
using F = Format<DType::kInt8>;

// x in int8.
struct TokensView {
  int8_t* q = nullptr;      // [rows, stride], zeros from columns on
  uint8_t* mask = nullptr;  // [rows, units * 16]: bit k % 8 of byte k / 8: k is an outlier
  float* scale = nullptr;   // [rows]
  int64_t stride = 0;
  int64_t units = 0;
};

struct TokensParams {
  ProductParams product;
  DType x_dtype = DType::kF32;
  TokensView tokens;
};

__device__ __forceinline__ bool IsOutlier(float x, float limit) {
  return !(x <= limit && x >= -limit);
}

// Int8Limit of kernels/int8.h; no multiply-add may be fused.
__device__ __forceinline__ float LimitOf(float squares, int64_t count) {
  if (!(squares > 0x1.0p-100F)) return 6.0F;
  const float limit = __fmul_rn(5.0F, __fsqrt_rn(__fdiv_rn(squares, static_cast<float>(count))));
  return limit < 6.0F ? limit : 6.0F;
}

__global__ void __launch_bounds__(kThreads) QuantizeTokensKernel(TokensParams params) {
  BeginKernel();
  __shared__ float parts[kParts];
  __shared__ float scratch[32];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x, columns = params.product.x.columns;
  const int64_t begin = row * columns;
  const void* x = params.product.x.x;
  if (thread < kParts) {
    float sum = 0;
    for (int64_t k = thread; k < columns; k += kParts) {
      float value = LoadAs(x, params.x_dtype, begin + k);
      if (IsOutlier(value, 6.0F)) value = 0;
      sum = __fadd_rn(sum, __fmul_rn(value, value));
    }
    parts[thread] = sum;
  }
  __syncthreads();
  float squares = 0;
  for (int i = 0; i < kParts; ++i) squares = __fadd_rn(squares, parts[i]);
  const float limit = LimitOf(squares, columns);
  float most = 0;
  for (int64_t k = thread; k < columns; k += kThreads) {
    const float value = LoadAs(x, params.x_dtype, begin + k);
    if (!IsOutlier(value, limit)) most = fmaxf(most, fabsf(value));
  }
  most = BlockMax(most, scratch);
  const bool steps = most >= 0x1.0p-96F;
  const float inverse = steps ? __fdiv_rn(127.0F, most) : 0.0F;
  if (thread == 0) params.tokens.scale[row] = steps ? __fdiv_rn(most, 127.0F) : 0.0F;
  for (int64_t byte = thread; byte < params.tokens.units * kUnitMaskBytes; byte += kThreads) {
    uint32_t mask = 0, words[2] = {0, 0};
    for (int j = 0; j < 8 && byte * 8 + j < columns; ++j) {
      const float value = LoadAs(x, params.x_dtype, begin + byte * 8 + j);
      if (IsOutlier(value, limit)) {
        mask |= 1U << j;
        continue;
      }
      // Adding 1.5 * 2^23 rounds to an integer, whose low byte is q.
      const float sum = __fadd_rn(__fmul_rn(value, inverse), 12582912.0F);
      words[j / 4] |= (Reinterpret<uint32_t>(sum) & 0xff) << (8 * (j % 4));
    }
    params.tokens.mask[row * params.tokens.units * kUnitMaskBytes + byte] =
        static_cast<uint8_t>(mask);
    if (byte * 8 < params.tokens.stride) {
      *reinterpret_cast<uint2*>(params.tokens.q + row * params.tokens.stride + byte * 8) =
          make_uint2(words[0], words[1]);
    }
  }
}

// The lane's 32 int8 of a unit of token `row`, as F::Load has them of a weight row.
__device__ __forceinline__ void LoadToken(const TokensParams& params, int64_t row, int64_t unit,
                                          int t, uint32_t (&words)[8]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t at = unit * kUnit + F::First(2 * i, t);
    uint4 v = make_uint4(0, 0, 0, 0);
    if (row < params.product.x.rows && at < params.tokens.stride) {
      v = *reinterpret_cast<const uint4*>(params.tokens.q + row * params.tokens.stride + at);
    }
    words[4 * i] = v.x;
    words[4 * i + 1] = v.y;
    words[4 * i + 2] = v.z;
    words[4 * i + 3] = v.w;
  }
}

// Bits of the same values: octet p in byte p.
__device__ __forceinline__ uint32_t LoadMask(const TokensParams& params, int64_t row, int64_t unit,
                                             int t) {
  if (row >= params.product.x.rows) return 0;
  const uint8_t* from =
      params.tokens.mask + (row * params.tokens.units + unit) * kUnitMaskBytes + 2 * t;
  const uint32_t low = *reinterpret_cast<const uint16_t*>(from);
  return low | static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(from + 8)) << 16;
}

// sums += the outliers of eight tokens within a unit by 16 outputs.
template <typename A>
__device__ __forceinline__ void MultiplyOutliers(const TokensParams& params, const F::Raw (&raw)[2],
                                                 int64_t row, int64_t unit, int t, uint32_t mask,
                                                 float (&sums)[4]) {
  const InputRow<A> input = InputRowOf<A>(params.product.x, row);
#pragma unroll
  for (int p = 0; p < F::kChunks; ++p) {
    uint32_t x[4], low[4], high[4];
    LoadInputOctet<DType::kInt8>(params.product.x, input, static_cast<int>(unit), p, t, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t bits = mask >> (8 * p + 2 * i);
      x[i] &= ((bits & 1) != 0 ? 0xffffU : 0U) | ((bits & 2) != 0 ? 0xffff0000U : 0U);
    }
    F::template Pairs<A>(raw[0], p, low);
    F::template Pairs<A>(raw[1], p, high);
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint32_t a[4] = {low[2 * step], high[2 * step], low[2 * step + 1], high[2 * step + 1]};
      const uint32_t b[2] = {x[2 * step], x[2 * step + 1]};
      Mma16816<A>(sums, a, b);
    }
  }
}

// Adds the warps' sums and stores them.
template <int kNt>
__device__ __forceinline__ void StoreTokens(const TokensParams& params,
                                            const int32_t (&sums)[kNt][4],
                                            const float (&outliers)[kNt][4]) {
  constexpr int kRows = 8 * kNt;
  __shared__ int32_t shared_sums[kWarps][16][kRows + 1];
  __shared__ float shared_outliers[kWarps][16][kRows + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpThreads, lane = thread % kWarpThreads;
#pragma unroll
  for (int nt = 0; nt < kNt; ++nt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int output = lane / 4 + i / 2 * 8, row = nt * 8 + lane % 4 * 2 + i % 2;
      shared_sums[warp][output][row] = sums[nt][i];
      shared_outliers[warp][output][row] = outliers[nt][i];
    }
  }
  __syncthreads();
  for (int i = thread; i < 16 * kRows; i += kThreads) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + i / 16;
    const int64_t output = static_cast<int64_t>(blockIdx.y) * 16 + i % 16;
    if (row >= params.product.x.rows || output >= params.product.y.outputs) continue;
    int32_t sum = 0;
    float outlier = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      sum += shared_sums[w][i % 16][i / 16];
      outlier += shared_outliers[w][i % 16][i / 16];
    }
    const float value = fmaf(params.tokens.scale[row], static_cast<float>(sum), outlier);
    StoreProduct(params.product.y, row, output, value);
  }
}

template <typename A, int kNt>
__global__ void __launch_bounds__(kThreads, 2) TokensProductKernel(TokensParams params) {
  BeginKernel();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpThreads, g = lane / 4, t = lane % 4;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * (8 * kNt);
  const CudaMatrix& w = params.product.w;
  const uint8_t* rows[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t output = static_cast<int64_t>(blockIdx.y) * 16 + half * 8 + g;
    rows[half] = w.data + (output < w.rows - 1 ? output : w.rows - 1) * params.product.shape.stride;
  }
  int32_t sums[kNt][4] = {};
  float outliers[kNt][4] = {};
  for (int64_t unit = thread / kWarpThreads; unit < params.tokens.units; unit += kWarps) {
    F::Raw raw[2];
    F::Load(raw[0], rows[0], params.product.shape, unit, t);
    F::Load(raw[1], rows[1], params.product.shape, unit, t);
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
      const int64_t row = first_row + nt * 8 + g;
      const uint32_t mask = LoadMask(params, row, unit, t);
      uint32_t q[8];
      LoadToken(params, row, unit, t, q);
#pragma unroll
      for (int p = 0; p < F::kChunks; ++p) {
        const uint32_t a[4] = {raw[0].words[2 * p], raw[1].words[2 * p], raw[0].words[2 * p + 1],
                               raw[1].words[2 * p + 1]};
        const uint32_t b[2] = {q[2 * p], q[2 * p + 1]};
        MmaInt8(sums[nt], a, b);
      }
      if (__any_sync(0xffffffff, mask != 0)) {
        MultiplyOutliers<A>(params, raw, row, unit, t, mask, outliers[nt]);
      }
    }
  }
  StoreTokens<kNt>(params, sums, outliers);
}

// x in f32, whose outliers no 16-bit float holds: a warp computes one output, four int8 products
// an instruction.
__global__ void __launch_bounds__(kThreads) TokensF32Kernel(TokensParams params) {
  BeginKernel();
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpThreads, t = lane % 4;
  const int64_t output = static_cast<int64_t>(blockIdx.y) * kWarps + thread / kWarpThreads;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kF32Rows;
  if (output >= params.product.y.outputs) return;  // the whole warp, and the block has no barrier
  const uint8_t* weights = params.product.w.data + output * params.product.shape.stride;
  const float* x = static_cast<const float*>(params.product.x.x);
  int32_t sums[kF32Rows] = {};
  float outliers[kF32Rows] = {};
  for (int64_t unit = lane / 4; unit < params.tokens.units; unit += kWarpThreads / 4) {
    F::Raw raw;
    F::Load(raw, weights, params.product.shape, unit, t);
#pragma unroll
    for (int r = 0; r < kF32Rows; ++r) {
      const int64_t row = first_row + r;
      const uint32_t mask = LoadMask(params, row, unit, t);
      uint32_t q[8];
      LoadToken(params, row, unit, t, q);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sums[r] = DotInt8(static_cast<int>(q[i]), static_cast<int>(raw.words[i]), sums[r]);
      }
      if (mask == 0) continue;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if ((mask >> i & 1) == 0) continue;
        const int64_t k = unit * kUnit + F::First(i / 8, t) + i % 8;
        outliers[r] = fmaf(x[row * params.product.x.columns + k],
                           SignedByte(raw.words[i / 4], i % 4), outliers[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kF32Rows; ++r) {
    int32_t sum = sums[r];
    for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xffffffff, sum, distance);
    }
    const float outlier = WarpSum(outliers[r]);
    const int64_t row = first_row + r;
    if (lane == 0 && row < params.product.x.rows) {
      StoreProduct(params.product.y, row, output,
                   fmaf(params.tokens.scale[row], static_cast<float>(sum), outlier));
    }
  }
}

int64_t RoundUp(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

// Where q, bits and scales of `rows` tokens lie in `workspace`; `bytes`, if given: how many.
TokensView TokensViewOf(uint8_t* workspace, int64_t columns, int64_t rows, int64_t* bytes) {
  TokensView view;
  view.stride = RoundUp(columns, kCudaRowAlignment);
  view.units = (columns + kUnit - 1) / kUnit;
  const int64_t mask = RoundUp(rows * view.stride, kAlignment);
  const int64_t scale = mask + RoundUp(rows * view.units * kUnitMaskBytes, kAlignment);
  view.q = reinterpret_cast<int8_t*>(workspace);
  view.mask = workspace + mask;
  view.scale = reinterpret_cast<float*>(workspace + scale);
  if (bytes != nullptr) *bytes = scale + RoundUp(4 * rows, kAlignment);
  return view;
}

template <typename A, int kNt>
void LaunchTokens(const CudaContext& context, const TokensParams& params) {
  const dim3 grid(static_cast<unsigned>((params.product.x.rows + 8 * kNt - 1) / (8 * kNt)),
                  static_cast<unsigned>((params.product.y.outputs + 15) / 16));
  Launch(TokensProductKernel<A, kNt>, grid, kThreads, 0, context, params);
}

template <typename A>
void LaunchTokensOf(const CudaContext& context, const TokensParams& params) {
  if (params.product.x.rows <= 8) return LaunchTokens<A, 1>(context, params);
  if (params.product.x.rows <= 16) return LaunchTokens<A, 2>(context, params);
  LaunchTokens<A, 4>(context, params);
}

}  // namespace

int64_t MatmulTokensWorkspaceBytes(int64_t columns, int64_t rows) {
  int64_t bytes = 0;
  TokensViewOf(nullptr, columns, rows, &bytes);
  return bytes;
}

void MatmulTokensCuda(const CudaContext& context, const CudaMatmulArgs& args) {
  PERGOLA_CHECK(args.w.dtype == DType::kInt8);
  const int64_t rows = args.x.dim(0);
  const int64_t needed = MatmulTokensWorkspaceBytes(args.w.columns, rows);
  PERGOLA_CHECK_MSG(needed <= context.workspace_bytes,
                    "a workspace of " + std::to_string(context.workspace_bytes) +
                        " bytes for int8 tokens that need " + std::to_string(needed));
  TokensParams params;
  params.product = ProductParamsOf(args);
  params.x_dtype = args.x.dtype();
  params.tokens = TokensViewOf(context.workspace, args.w.columns, rows, nullptr);
  Launch(QuantizeTokensKernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, context, params);
  if (params.x_dtype == DType::kBF16) return LaunchTokensOf<__nv_bfloat16>(context, params);
  if (params.x_dtype == DType::kF16) return LaunchTokensOf<__half>(context, params);
  const dim3 grid(static_cast<unsigned>((rows + kF32Rows - 1) / kF32Rows),
                  static_cast<unsigned>((args.w.rows + kWarps - 1) / kWarps));
  Launch(TokensF32Kernel, grid, kThreads, 0, context, params);
}

}  // namespace pergola
