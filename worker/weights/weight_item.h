// The weights of a checkpoint that one rank needs: where each lies, which part of it the rank
// holds, and as what. Refuses what cannot be held before anything is read.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/cut.h"
#include "model/layout.h"
#include "model/weight_format.h"

namespace pergola {

// Borrows from its checkpoint.
struct WeightItem {
  const WeightBinding* binding = nullptr;
  const TensorInfo* tensor = nullptr;
  Cut cut;
  int64_t tensor_columns = 1;  // of one row of the file
  DType held = DType::kF32;    // of a matrix: what it is packed as

  bool matrix() const { return binding->shape.size() == 2; }
  DType dtype() const { return tensor->dtype; }
  bool converted() const { return matrix() && held != dtype(); }
  int64_t columns() const { return matrix() ? binding->shape[1] : 1; }
  int64_t rows() const { return cut.rows.size(); }
  // What must be read of each row: to be rounded, all of it.
  Range read_columns() const { return converted() ? Range{0, columns()} : cut.columns; }
  int64_t row_bytes() const { return DTypeBytes(dtype(), tensor_columns); }
  // Of a transposed tensor the rank reads a stripe of each row.
  int64_t read_bytes() const;
  // The row of the tensor that holds row `row` of the cut (its column, if it is transposed).
  int64_t TensorRow(int64_t row) const { return binding->rows.Of(cut.rows.begin + row); }
  // How many rows of the cut, from `row` on, lie one after the other, at most `most`.
  int64_t Together(int64_t row, int64_t most) const;
  // Rows that are packed together: a head's, if the file has them interleaved.
  int64_t RowUnit(int64_t head_dim) const {
    return binding->row_order == RowOrder::kPlain ? 1 : head_dim;
  }
  // Values of the first block that lie before the cut.
  int lead() const { return static_cast<int>(cut.columns.begin % BlockValues(held)); }
};

// In the order of checkpoint.weights(). INVALID_ARGUMENT naming the tensor for a dtype that the
// weight cannot have or that `format` cannot hold, and for a tensor of the wrong size.
absl::StatusOr<std::vector<WeightItem>> WeightItemsOf(const Checkpoint& checkpoint,
                                                      const RankLayout& layout,
                                                      WeightFormat format);

}  // namespace pergola
