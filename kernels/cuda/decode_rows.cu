// Rows of a weight matrix of any dtype as f32, bf16 or f16: the embedding, and tiles of packed
// weights that a dense product takes when x has many rows.
//
// Four threads take a unit of 128 or 256 values: one to four 16-byte loads each, then stores of
// up to 16 bytes. Memory: the packed bytes once, the decoded ones once; the roof is the sum of both
// over the memory's bandwidth (tiles of a product stay in L2). Values have the bits of
// DecodeToF32, rounded once if y is narrower.
#include "kernels/cuda/matmul_parts.cuh"

namespace pergola {
namespace {

constexpr int kThreads = 256;

struct DecodeParams {
  DecodeRowsArgs args;
  CudaRowShape shape;
  bool vectors = false;  // octets of y are whole and aligned
};

// Eight values as 16 bytes.
template <typename A>
__device__ __forceinline__ void StoreHalves8(void* y, int64_t index, const float* values) {
  *reinterpret_cast<uint4*>(static_cast<A*>(y) + index) =
      make_uint4(PackPair<A>(values[0], values[1]), PackPair<A>(values[2], values[3]),
                 PackPair<A>(values[4], values[5]), PackPair<A>(values[6], values[7]));
}
template <typename A>
__device__ __forceinline__ void StoreHalves4(void* y, int64_t index, const float* values) {
  *reinterpret_cast<uint2*>(static_cast<A*>(y) + index) =
      make_uint2(PackPair<A>(values[0], values[1]), PackPair<A>(values[2], values[3]));
}

// Four values of stored k on, as far as they are the matrix's.
__device__ __forceinline__ void Store4(const DecodeParams& params, int64_t row, int64_t k,
                                       const float* values) {
  const DecodeRowsArgs& args = params.args;
  const int64_t column = k - args.w.lead;
  const int64_t index = row * args.y_stride + column;
  if (args.accumulate) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (column + j >= 0 && column + j < args.w.columns) {
        static_cast<float*>(args.y)[index + j] += values[j];
      }
    }
    return;
  }
  if (params.vectors) {
    if (column < 0 || column >= args.w.columns) return;
    if (args.y_dtype == DType::kF32) {
      *reinterpret_cast<float4*>(static_cast<float*>(args.y) + index) =
          make_float4(values[0], values[1], values[2], values[3]);
    } else if (args.y_dtype == DType::kBF16) {
      StoreHalves4<__nv_bfloat16>(args.y, index, values);
    } else {
      StoreHalves4<__half>(args.y, index, values);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (column + j >= 0 && column + j < args.w.columns) {
      StoreAs(args.y, args.y_dtype, index + j, values[j]);
    }
  }
}

// An octet.
template <typename F>
__device__ __forceinline__ void StoreOctet(const DecodeParams& params, int64_t row, int64_t unit,
                                           int p, int t, const float* values) {
  const DecodeRowsArgs& args = params.args;
  const int64_t k = unit * F::kUnit + F::First(p, t);
  if (!F::kTwoScales && params.vectors && args.y_dtype != DType::kF32) {
    const int64_t column = k - args.w.lead;
    if (column < 0 || column >= args.w.columns) return;
    if (args.y_dtype == DType::kBF16) {
      StoreHalves8<__nv_bfloat16>(args.y, row * args.y_stride + column, values);
    } else {
      StoreHalves8<__half>(args.y, row * args.y_stride + column, values);
    }
    return;
  }
  Store4(params, row, k, values);
  Store4(params, row, unit * F::kUnit + F::Second(p, t), values + 4);
}

template <DType kD>
__global__ void __launch_bounds__(kThreads) DecodeRowsKernel(DecodeParams params) {
  BeginKernel();
  using F = Format<kD>;
  const DecodeRowsArgs& args = params.args;
  const int64_t row = blockIdx.y;
  const int64_t piece = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t unit = piece / 4;
  const int t = static_cast<int>(piece % 4);
  if (unit >= params.shape.units) return;
  const int64_t source =
      args.ids != nullptr ? args.ids[row] - args.first_row : args.first_row + row;
  const bool here = source >= 0 && source < args.w.rows;
  typename F::Raw raw = {};
  float scale = 1;
  if (here) {
    F::Load(raw, args.w.data + source * params.shape.stride, params.shape, unit, t);
    if constexpr (kD == DType::kInt8) scale = Int8Scales(args.w, params.shape)[source];
  }
#pragma unroll
  for (int p = 0; p < F::kChunks; ++p) {
    float w[8] = {};
    if (here) {
      DecodeOctet<F>(raw, p, w);
      if constexpr (kD == DType::kInt8) {
#pragma unroll
        for (int j = 0; j < 8; ++j) w[j] *= scale;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) w[j] *= args.scale;
    }
    StoreOctet<F>(params, row, unit, p, t, w);
  }
}

template <DType kD>
void DecodeRows(const CudaContext& context, const DecodeParams& params) {
  // blockIdx.y counts rows: as many as fit in one launch at a time.
  constexpr int64_t kMostRows = 65535;
  DecodeParams piece = params;
  const int64_t blocks = (params.shape.units * 4 + kThreads - 1) / kThreads;
  const int64_t value_bytes = BlockBytes(params.args.y_dtype);
  for (int64_t row = 0; row < params.args.rows; row += kMostRows) {
    piece.args.rows = params.args.rows - row < kMostRows ? params.args.rows - row : kMostRows;
    piece.args.y = static_cast<uint8_t*>(params.args.y) + row * params.args.y_stride * value_bytes;
    if (params.args.ids != nullptr) {
      piece.args.ids = params.args.ids + row;
    } else {
      piece.args.first_row = params.args.first_row + row;
    }
    Launch(DecodeRowsKernel<kD>,
           dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(piece.args.rows)), kThreads, 0,
           context, piece);
  }
}

__global__ void __launch_bounds__(kThreads)
    ConvertKernel(const float* from, int64_t count, DType dtype, void* to) {
  BeginKernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) StoreAs(to, dtype, i, from[i]);
}

void DecodeRowsOfBlocks(const CudaContext& context, const DecodeParams& params) {
  switch (params.args.w.dtype) {
    case DType::kQ8_0:
      return DecodeRows<DType::kQ8_0>(context, params);
    case DType::kQ4_0:
      return DecodeRows<DType::kQ4_0>(context, params);
    case DType::kQ4_1:
      return DecodeRows<DType::kQ4_1>(context, params);
    case DType::kQ5_0:
      return DecodeRows<DType::kQ5_0>(context, params);
    case DType::kQ5_1:
      return DecodeRows<DType::kQ5_1>(context, params);
    case DType::kIQ4_NL:
      return DecodeRows<DType::kIQ4_NL>(context, params);
    case DType::kQ2_K:
      return DecodeRows<DType::kQ2_K>(context, params);
    case DType::kQ3_K:
      return DecodeRows<DType::kQ3_K>(context, params);
    case DType::kQ4_K:
      return DecodeRows<DType::kQ4_K>(context, params);
    case DType::kQ5_K:
      return DecodeRows<DType::kQ5_K>(context, params);
    default:
      PERGOLA_CHECK(params.args.w.dtype == DType::kQ6_K);
      return DecodeRows<DType::kQ6_K>(context, params);
  }
}

}  // namespace

void DecodeRowsCuda(const CudaContext& context, const DecodeRowsArgs& args) {
  PERGOLA_CHECK(args.y_dtype == DType::kF32 || args.y_dtype == DType::kBF16 ||
                args.y_dtype == DType::kF16);
  PERGOLA_CHECK(!args.accumulate || args.y_dtype == DType::kF32);
  if (args.rows == 0 || args.w.columns == 0) return;
  DecodeParams params;
  params.args = args;
  params.shape = CudaRowShapeOf(args.w.dtype, args.w.columns, args.w.lead);
  params.vectors = args.w.lead % 8 == 0 && args.w.columns % 8 == 0 && args.y_stride % 8 == 0 &&
                   reinterpret_cast<uintptr_t>(args.y) % 16 == 0;
  switch (args.w.dtype) {
    case DType::kF32:
      return DecodeRows<DType::kF32>(context, params);
    case DType::kBF16:
      return DecodeRows<DType::kBF16>(context, params);
    case DType::kF16:
      return DecodeRows<DType::kF16>(context, params);
    case DType::kInt8:
      return DecodeRows<DType::kInt8>(context, params);
    default:
      return DecodeRowsOfBlocks(context, params);
  }
}

void ConvertCuda(const CudaContext& context, const float* from, int64_t count, DType dtype,
                 void* to) {
  if (count == 0) return;
  Launch(ConvertKernel, dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads)), kThreads, 0,
         context, from, count, dtype, to);
}

void EmbeddingCuda(const CudaContext& context, const CudaEmbeddingArgs& args) {
  PERGOLA_CHECK(args.ids.dtype() == DType::kI32 && args.y.dtype() == DType::kF32);
  PERGOLA_CHECK(args.y.dim(0) == args.ids.dim(0) && args.y.dim(1) == args.table.columns);
  DecodeRowsArgs decode;
  decode.w = args.table;
  decode.first_row = args.first_row;
  decode.ids = args.ids.i32();
  decode.rows = args.ids.dim(0);
  decode.y = args.y.data();
  decode.y_dtype = DType::kF32;
  decode.y_stride = args.table.columns;
  decode.scale = args.scale;
  decode.accumulate = args.accumulate;
  DecodeRowsCuda(context, decode);
}

}  // namespace pergola
