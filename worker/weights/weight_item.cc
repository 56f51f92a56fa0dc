#include "worker/weights/weight_item.h"

#include <algorithm>

#include "base/status.h"
#include "model/packed_size.h"
#include "model/shape_spec.h"

namespace pergola {
namespace {

bool Packable(DType dtype) {
  return dtype != DType::kI32;
}

absl::StatusOr<WeightItem> MakeItem(const Checkpoint& checkpoint, const RankLayout& layout,
                                    const WeightBinding& binding, WeightFormat format) {
  WeightItem item;
  item.binding = &binding;
  item.tensor = checkpoint.Find(binding.tensor);
  if (item.tensor == nullptr) {
    return absl::InternalError(absl::StrCat("tensor ", binding.tensor, " is bound to ",
                                            RoleName(binding.role, binding.layer),
                                            " but not in the checkpoint"));
  }
  const bool matrix = binding.shape.size() == 2;
  const DType dtype = item.tensor->dtype;
  if (matrix ? !Packable(dtype) : (BlockValues(dtype) != 1 || dtype == DType::kI32)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", binding.tensor, " is ", ToAbsl(DTypeName(dtype)), ", which ",
                     RoleName(binding.role, binding.layer), " cannot be"));
  }
  item.held = HeldDType(format, dtype, IsProjection(KindOf(binding.role)));
  if (matrix && item.held == DType::kInt8 && binding.shape[1] > kMostInt8Columns) {
    return absl::InvalidArgumentError(
        absl::StrCat("--dtype int8: tensor ", binding.tensor, " has ", binding.shape[1],
                     " inputs; sums of int8 products hold at most ", kMostInt8Columns));
  }
  item.tensor_columns = matrix ? item.tensor->shape[1] : 1;
  item.cut = CutOf(binding, checkpoint.spec(), layout);
  const int64_t file_rows = item.tensor->shape[0];
  if (item.tensor_columns % BlockValues(dtype) != 0 ||
      item.tensor->bytes != file_rows * item.row_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", binding.tensor, " has ", item.tensor->bytes, " bytes, not the ",
                     file_rows, " rows of ", item.tensor_columns, " ", ToAbsl(DTypeName(dtype)),
                     " values of ", RoleName(binding.role, binding.layer)));
  }
  if (binding.transposed && BlockValues(dtype) != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", binding.tensor, " is ", ToAbsl(DTypeName(dtype)),
        ", whose blocks cannot be transposed to be ", RoleName(binding.role, binding.layer)));
  }
  return item;
}

}  // namespace

int64_t WeightItem::read_bytes() const {
  if (!binding->transposed) return rows() * row_bytes();
  return read_columns().size() * DTypeBytes(dtype(), rows());
}

int64_t WeightItem::Together(int64_t row, int64_t most) const {
  const int64_t group = binding->rows.group;
  const int64_t left = rows() - row;
  return std::min({most, left, group == 0 ? left : group - (cut.rows.begin + row) % group});
}

absl::StatusOr<std::vector<WeightItem>> WeightItemsOf(const Checkpoint& checkpoint,
                                                      const RankLayout& layout,
                                                      WeightFormat format) {
  std::vector<WeightItem> items;
  for (const WeightBinding& binding : checkpoint.weights()) {
    if (!Holds(binding, checkpoint.spec(), layout)) continue;
    ASSIGN_OR_RETURN(WeightItem item, MakeItem(checkpoint, layout, binding, format));
    items.push_back(item);
  }
  return items;
}

}  // namespace pergola
