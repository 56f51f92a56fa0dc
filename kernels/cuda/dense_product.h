// Large dense products by cuBLASLt: y[r, o] = sum over k of x[r, k] w[o, k] (+ bias[o]) (+ y[r,
// o]), or GELU of that, f32 accumulation, f32 operands without tf32. Of int8 the sums alone, in
// int32; of fp8 (e4m3) each sum times x_scales[r] w_scales[o] before the rest. The one seam to that
// library; the emulator has a plain implementation behind the same header.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/context.h"
#include "model/dtype.h"

namespace pergola {

struct DenseProductArgs {
  DType dtype = DType::kF32;    // of x and w: f32, bf16, f16, int8, fp8
  DType y_dtype = DType::kF32;  // `dtype` or f32; of int8 i32, of fp8 bf16 or f16
  int64_t rows = 0, columns = 0, outputs = 0;
  // Row-major, strides in values.
  const void* x = nullptr;
  int64_t x_stride = 0;
  const void* w = nullptr;
  int64_t w_stride = 0;
  void* y = nullptr;
  int64_t y_stride = 0;
  const void* bias = nullptr;  // [outputs] in y_dtype, 16-byte aligned, or nullptr; not of int8
  const float* x_scales = nullptr;  // of fp8: [rows], 16-byte aligned
  const float* w_scales = nullptr;  // of fp8: [outputs], 16-byte aligned
  bool accumulate = false;
  bool gelu = false;  // in its tanh form, last of all; not of int8
};

// Holds the library's handle and one plan per shape. Made once per rank before serving; Multiply
// may allocate a little host memory for a shape's first plan, never device memory. One thread.
class DenseProduct {
 public:
  static absl::StatusOr<std::unique_ptr<DenseProduct>> Create();
  virtual ~DenseProduct() = default;
  // Whether the library has this product on this device. It always has those of floats; of int8
  // where columns, outputs and strides are multiples of 4; of fp8 where x, w and rows of y begin at
  // multiples of 16 bytes, columns and outputs are multiples of 16, and the device is a Hopper
  // (NVIDIA, "cuBLAS library user guide", cublasLtMatmul; the library itself is asked).
  virtual bool Has(const CudaContext& context, const DenseProductArgs& args) = 0;
  // Of what it Has. Takes the first kDenseWorkspaceBytes of `workspace`, or what there is of them.
  // What the library refuses, here or in Has, the context keeps (KeepRefusal).
  virtual void Multiply(const CudaContext& context, const DenseProductArgs& args) = 0;
};

// As cuBLAS's documentation recommends for Hopper.
inline constexpr int64_t kDenseWorkspaceBytes = int64_t{32} << 20;

}  // namespace pergola
