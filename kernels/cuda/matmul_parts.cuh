// What the products of kernels/cuda/matmul_*.cu share: views of x and y, and the seams between
// their files.
#pragma once

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/weight_format.cuh"

namespace pergola {

// x [rows, columns]; k counts the values that w stores, so x's column is k - lead.
struct InputView {
  const void* x = nullptr;
  int64_t rows = 0;
  int64_t columns = 0;
  int lead = 0;
  bool vectors = false;  // octets are whole and aligned
};

// y [rows, outputs], and what is added on the way there.
struct OutputView {
  void* y = nullptr;
  DType dtype = DType::kF32;
  int64_t stride = 0;
  int64_t outputs = 0;
  const float* bias = nullptr;
  const float* scales = nullptr;  // of int8 and fp8, per output
  bool accumulate = false;
  bool gelu = false;  // after all that
};

struct ProductParams {
  InputView x;
  CudaMatrix w;
  CudaRowShape shape;
  OutputView y;
  int splits = 1;
  float* partial = nullptr;  // [splits, rows, outputs] if splits > 1
};

// bytes of 8 values must be whole and aligned in every row.
inline InputView InputViewOf(const CudaMatmulArgs& args) {
  InputView view;
  view.x = args.x.data();
  view.rows = args.x.dim(0);
  view.columns = args.w.columns;
  view.lead = args.w.lead;
  view.vectors =
      view.columns % 8 == 0 && view.lead % 8 == 0 && reinterpret_cast<uintptr_t>(view.x) % 16 == 0;
  return view;
}

ProductParams ProductParamsOf(const CudaMatmulArgs& args);

// y = sum over the splits of partial, scaled and with the rest of OutputView.
void FinishSplitsCuda(const CudaContext& context, const ProductParams& params);

// Most rows of x by dense weights in MatmulTensorCuda: with more a block's weights do not fit its
// registers.
inline constexpr int64_t kMostPlainTensorRows = 16;

// The ways of MatmulCuda; each CHECKs that it can serve the dtypes.
void MatmulTensorCuda(const CudaContext& context, const CudaMatmulArgs& args);        // 16-bit x
void MatmulBlocksTensorCuda(const CudaContext& context, const CudaMatmulArgs& args);  // of 32
void MatmulSuperblocksTensorCuda(const CudaContext& context, const CudaMatmulArgs& args);
void MatmulF32Cuda(const CudaContext& context, const CudaMatmulArgs& args);  // f32 x
// W8A8, where MultipliesEightBitTokens.
void MatmulTokensCuda(const CudaContext& context, const CudaMatmulArgs& args);
int64_t MatmulTokensWorkspaceBytes(const CudaMatrix& w, int64_t rows);

// Rows of `w` to `y` [rows, w.columns] of f32, bf16 or f16: first_row.., or of `ids` those less
// first_row, zeros where the matrix has none; times `scale`, and added to y (f32) if so asked.
struct DecodeRowsArgs {
  CudaMatrix w;
  int64_t first_row = 0;
  const int32_t* ids = nullptr;
  int64_t rows = 0;
  void* y = nullptr;
  DType y_dtype = DType::kF32;
  int64_t y_stride = 0;
  float scale = 1;
  bool accumulate = false;
};
void DecodeRowsCuda(const CudaContext& context, const DecodeRowsArgs& args);

// to[i] = from[i] in `dtype`.
void ConvertCuda(const CudaContext& context, const float* from, int64_t count, DType dtype,
                 void* to);

// One value of y: f32, bf16 or f16.
__device__ __forceinline__ float LoadAs(const void* from, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return static_cast<const float*>(from)[index];
  if (dtype == DType::kBF16) return ToFloat(static_cast<const __nv_bfloat16*>(from)[index]);
  return ToFloat(static_cast<const __half*>(from)[index]);
}
__device__ __forceinline__ void StoreAs(void* to, DType dtype, int64_t index, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(to)[index] = value;
  } else if (dtype == DType::kBF16) {
    static_cast<__nv_bfloat16*>(to)[index] = FromFloat<__nv_bfloat16>(value);
  } else {
    static_cast<__half*>(to)[index] = FromFloat<__half>(value);
  }
}

// The sum of products of (row, output) is `sum`.
__device__ __forceinline__ void StoreProduct(const OutputView& y, int64_t row, int64_t output,
                                             float sum) {
  if (y.scales != nullptr) sum *= y.scales[output];
  if (y.bias != nullptr) sum += y.bias[output];
  const int64_t index = row * y.stride + output;
  if (y.accumulate) sum += LoadAs(y.y, y.dtype, index);
  if (y.gelu) sum = Activated<Activation::kGeluTanh>(sum);
  StoreAs(y.y, y.dtype, index, sum);
}

// One row of x as a lane reads it; k counts stored values. 32-bit: a row has fewer than 2^31.
template <typename A>
struct InputRow {
  const A* values = nullptr;  // of column 0
  bool here = false;          // else all zeros
};

// Rows that x has not are all zeros or, with kRepeat, its last: for columns that nobody stores.
template <typename A, bool kRepeat>
__device__ __forceinline__ InputRow<A> InputRowOf(const InputView& x, int64_t row) {
  InputRow<A> input;
  if (kRepeat && row >= x.rows) row = x.rows - 1;
  input.values = static_cast<const A*>(x.x) + row * x.columns;
  input.here = row < x.rows;
  return input;
}

// Four values from stored k on, in two words; zeros outside the matrix.
template <typename A>
__device__ __forceinline__ void LoadInput4(const InputView& x, const InputRow<A>& row, int k,
                                           uint32_t* words) {
  const int column = k - x.lead, columns = static_cast<int>(x.columns);
  if (x.vectors) {
    uint2 v = make_uint2(0, 0);
    if (row.here && column >= 0 && column < columns) {
      v = *reinterpret_cast<const uint2*>(row.values + column);
    }
    words[0] = v.x;
    words[1] = v.y;
    return;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    words[i] = 0;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = column + 2 * i + j;
      if (row.here && at >= 0 && at < columns) {
        words[i] |= static_cast<uint32_t>(Reinterpret<uint16_t>(row.values[at])) << (16 * j);
      }
    }
  }
}

// Octet (p, t) of unit `unit` of format kD, as the fragments of two steps. kWhole: all of the
// matrix's octets are whole, aligned and in x, and the row is here.
template <DType kD, typename A, bool kWhole>
__device__ __forceinline__ void LoadInputOctet(const InputView& x, const InputRow<A>& row, int unit,
                                               int p, int t, uint32_t (&words)[4]) {
  using F = Format<kD>;
  const int first = unit * F::kUnit + F::First(p, t);
  if constexpr (kWhole && F::kTwoScales) {
    const auto low = *reinterpret_cast<const uint2*>(row.values + first);
    const auto high = *reinterpret_cast<const uint2*>(row.values + first + 16);
    words[0] = low.x;
    words[1] = low.y;
    words[2] = high.x;
    words[3] = high.y;
    return;
  }
  if (!kWhole && (F::kTwoScales || !x.vectors)) {
    LoadInput4(x, row, first, &words[0]);
    LoadInput4(x, row, unit * F::kUnit + F::Second(p, t), &words[2]);
    return;
  }
  const int column = kWhole ? first : first - x.lead;
  uint4 v = make_uint4(0, 0, 0, 0);
  if (kWhole || (row.here && column >= 0 && column < static_cast<int>(x.columns))) {
    v = *reinterpret_cast<const uint4*>(row.values + column);
  }
  words[0] = v.x;
  words[1] = v.y;
  words[2] = v.z;
  words[3] = v.w;
}

}  // namespace pergola
