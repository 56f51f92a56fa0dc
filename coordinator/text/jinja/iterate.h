// Walking over values and ordering them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

// All items: of a list, tuple, range or view, a dict's keys, a text's characters, a generator's
// rest, and nothing of an undefined. INVALID_ARGUMENT for what cannot be iterated over, and for
// a generator's error.
absl::StatusOr<std::vector<Value>> ItemsOf(const Value& value, Heap& heap);
bool IsIterable(const Value& value);
// len(); nothing if the value has none.
std::optional<int64_t> LengthOf(const Value& value);

// left < right, as Python orders numbers, texts, lists and tuples.
absl::StatusOr<bool> IsLess(const Value& left, const Value& right, Heap& heap);

struct SortItem {
  Value key;
  Value item;
};
// Stable, also in reverse.
absl::Status SortItems(bool reverse, Heap& heap, std::vector<SortItem>* items);

// A slice's indices into `length` items, as Python counts them.
struct SliceIndices {
  int64_t start = 0, step = 1, count = 0;
};
// Bounds that are none or missing are open; INVALID_ARGUMENT for other types and for step 0.
absl::StatusOr<SliceIndices> ResolveSlice(const Value& start, const Value& stop, const Value& step,
                                          int64_t length);

}  // namespace pergola::jinja
