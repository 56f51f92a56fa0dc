// How many bytes a weight matrix takes in GPU memory, and where the parts of its rows lie
// (kernels/cuda/matrix_layout.h says what is in them). Here because the memory plan must know it
// without kernels.
#pragma once

#include <cstdint>

#include "model/dtype.h"

namespace pergola {

// What is constant for a block format.
struct CudaBlockFormat {
  int unit = 128;       // values
  int sub = 32;         // values that share a scale
  int low_bits = 0;     // 0: not a block format
  int high_bits = 0;    // above them
  int small_bytes = 0;  // per block of 256: small scales, of q4_k and q5_k with the f16 numbers
  int half_bytes = 0;   // per block: f16 numbers
  bool minimum = false;
};

constexpr CudaBlockFormat CudaBlockFormatOf(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return {128, 32, 8, 0, 0, 2, false};
    case DType::kQ4_0:
    case DType::kIQ4_NL:
      return {128, 32, 4, 0, 0, 2, false};
    case DType::kQ4_1:
      return {128, 32, 4, 0, 0, 4, true};
    case DType::kQ5_0:
      return {128, 32, 4, 1, 0, 2, false};
    case DType::kQ5_1:
      return {128, 32, 4, 1, 0, 4, true};
    case DType::kQ2_K:
      return {256, 16, 2, 0, 16, 4, true};
    case DType::kQ3_K:
      return {256, 16, 2, 1, 12, 2, false};
    case DType::kQ4_K:
      return {256, 32, 4, 0, 16, 0, true};
    case DType::kQ5_K:
      return {256, 32, 4, 1, 16, 0, true};
    case DType::kQ6_K:
      return {256, 16, 4, 2, 16, 2, false};
    default:
      return {};
  }
}

inline constexpr int64_t kCudaRowAlignment = 16;

// Where a row's parts lie, in bytes from its beginning.
struct CudaRowShape {
  int64_t stride = 0;  // from row to row, a multiple of kCudaRowAlignment
  int64_t units = 0;   // of 128 values for dense, int8 and fp8
  int64_t high = 0;
  int64_t small = 0;
  int64_t halves = 0;
};
CudaRowShape CudaRowShapeOf(DType dtype, int64_t columns, int lead);

// Bytes of the whole matrix: for the memory plan, and for the image below.
int64_t CudaMatrixBytes(DType dtype, int64_t rows, int64_t columns, int lead = 0);

}  // namespace pergola
