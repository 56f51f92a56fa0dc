// Python's operators on values. Errors are INVALID_ARGUMENT in Python's words, or a budget's.
#pragma once

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/ast.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

absl::StatusOr<Value> Arithmetic(Op op, const Value& left, const Value& right, Heap& heap);
absl::StatusOr<Value> Signed(bool negative, const Value& operand);
absl::StatusOr<bool> Comparison(Op op, const Value& left, const Value& right, Heap& heap);
absl::StatusOr<bool> Contains(const Value& container, const Value& item, Heap& heap);

// object[index]: a missing value where Python raises TypeError or LookupError.
absl::StatusOr<Value> ItemAt(const Value& object, const Value& index, Heap& heap);
absl::StatusOr<Value> SliceOf(const Value& object, const SliceIndices& indices, Heap& heap);

// text % arguments.
absl::StatusOr<Value> PercentFormat(const Value& text, const Value& arguments, Heap& heap);

}  // namespace pergola::jinja
