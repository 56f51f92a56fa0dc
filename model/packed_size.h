// How many bytes a weight matrix takes once packed for the matmul (kernels/packed_layout.h says
// where each value lies): outputs in panels of 32, the last one padded. Here because the memory
// plan must know it without kernels.
#pragma once

#include <cstdint>

#include "model/dtype.h"

namespace pergola {

inline constexpr int64_t kPanelColumns = 32;

// 127 * 127 times as many products of int8 fit into an int32.
inline constexpr int64_t kMostInt8Columns = int64_t{1} << 17;

// Before the values of an int8 panel: the f32 scales of its outputs, and the i32 sums of their
// weights.
inline constexpr int64_t kInt8HeaderBytes = kPanelColumns * 8;

// Values along K that are stored: `lead` + columns rounded up to the dtype's block (2 for bf16's
// pairs, 4 for int8's quads).
inline int64_t StoredK(DType dtype, int64_t columns, int lead) {
  const int64_t unit = dtype == DType::kBF16 ? 2 : dtype == DType::kInt8 ? 4 : BlockValues(dtype);
  return (lead + columns + unit - 1) / unit * unit;
}

inline int64_t PanelBytes(DType dtype, int64_t columns, int lead) {
  const int64_t header = dtype == DType::kInt8 ? kInt8HeaderBytes : 0;
  return header + kPanelColumns * DTypeBytes(dtype, StoredK(dtype, columns, lead));
}

inline int64_t PanelCount(int64_t rows) {
  return (rows + kPanelColumns - 1) / kPanelColumns;
}

// Of `rows` outputs and `columns` inputs; `lead` as in PackedMatrix::Allocate.
inline int64_t PackedMatrixBytes(DType dtype, int64_t rows, int64_t columns, int lead) {
  return PanelCount(rows) * PanelBytes(dtype, columns, lead);
}

}  // namespace pergola
