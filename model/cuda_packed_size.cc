#include "model/cuda_packed_size.h"

namespace pergola {
namespace {

constexpr int64_t kDenseUnit = 128;

int64_t RoundUp(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}

}  // namespace

CudaRowShape CudaRowShapeOf(DType dtype, int64_t columns, int lead) {
  CudaRowShape shape;
  const CudaBlockFormat format = CudaBlockFormatOf(dtype);
  if (format.low_bits == 0) {
    shape.units = (columns + kDenseUnit - 1) / kDenseUnit;
    shape.stride = RoundUp(columns * BlockBytes(dtype), kCudaRowAlignment);
    return shape;
  }
  shape.units = (lead + columns + format.unit - 1) / format.unit;
  const int64_t values = shape.units * format.unit;
  const int64_t blocks = values / BlockValues(dtype);
  shape.high = values * format.low_bits / 8;
  shape.small = shape.high + values * format.high_bits / 8;
  shape.halves = shape.small + blocks * format.small_bytes;
  shape.stride = RoundUp(shape.halves + blocks * format.half_bytes, kCudaRowAlignment);
  return shape;
}

bool CudaMatrixIsRows(DType dtype) {
  return !HasRowScale(dtype);
}

int64_t CudaMatrixBytes(DType dtype, int64_t rows, int64_t columns, int lead) {
  const int64_t scales = HasRowScale(dtype) ? RoundUp(4 * rows, kCudaRowAlignment) : 0;
  return rows * CudaRowShapeOf(dtype, columns, lead).stride + scales;
}

}  // namespace pergola
