#include "coordinator/text/jinja/iterate.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

absl::StatusOr<std::vector<Value>> CharactersOf(const std::string& text, Heap& heap) {
  RETURN_IF_ERROR(heap.StepItems(text.size() * 8));
  RETURN_IF_ERROR(heap.CheckBytes(text.size() * sizeof(Value)));
  std::vector<Value> items;
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    (void)NextCodePoint(text, &i);
    items.push_back(heap.String(text.substr(begin, i - begin)));
    RETURN_IF_ERROR(heap.Step(0));
  }
  return items;
}

absl::StatusOr<std::vector<Value>> ItemsOfView(const ViewObject& view, Heap& heap) {
  std::vector<Value> items;
  for (const auto& [key, value] : view.dict.dict().entries()) {
    switch (view.part) {
      case ViewObject::Part::kKeys:
        items.push_back(key);
        break;
      case ViewObject::Part::kValues:
        items.push_back(value);
        break;
      case ViewObject::Part::kItems:
        items.push_back(heap.Tuple({key, value}));
        break;
    }
  }
  RETURN_IF_ERROR(heap.StepItems(items.size()));
  return items;
}

absl::StatusOr<std::vector<Value>> RestOf(GeneratorObject& generator) {
  std::vector<Value> items;
  for (; generator.position < generator.items.size(); ++generator.position) {
    items.push_back(std::move(generator.items[generator.position]));
    generator.items[generator.position] = Value();
  }
  const absl::Status error = std::move(generator.error);
  generator.error = absl::OkStatus();
  RETURN_IF_ERROR(error);
  return items;
}

absl::Status NotIterable(const Value& value) {
  return absl::InvalidArgumentError(absl::StrCat("'", TypeName(value), "' object is not iterable"));
}

}  // namespace

absl::StatusOr<std::vector<Value>> ItemsOf(const Value& value, Heap& heap) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::kUndefined:
      return items;
    case Kind::kList:
    case Kind::kTuple:
      RETURN_IF_ERROR(heap.StepItems(value.items().size()));
      return value.items();
    case Kind::kString:
      return CharactersOf(value.text(), heap);
    case Kind::kDict:
      RETURN_IF_ERROR(heap.StepItems(value.dict().entries().size()));
      for (const auto& [key, item] : value.dict().entries()) items.push_back(key);
      return items;
    case Kind::kView:
      return ItemsOfView(value.As<ViewObject>(), heap);
    case Kind::kRange: {
      const auto& range = value.As<RangeObject>();
      RETURN_IF_ERROR(heap.StepItems(static_cast<uint64_t>(range.length)));
      RETURN_IF_ERROR(heap.CheckBytes(static_cast<uint64_t>(range.length) * sizeof(Value)));
      for (int64_t i = 0; i < range.length; ++i) {
        items.push_back(Value::Integer(range.start + i * range.step));
      }
      return items;
    }
    case Kind::kGenerator:
      return RestOf(value.Mutable<GeneratorObject>());
    default:
      return NotIterable(value);
  }
}

bool IsIterable(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kString:
    case Kind::kDict:
    case Kind::kView:
    case Kind::kRange:
    case Kind::kGenerator:
    case Kind::kLoop:
      return true;
    default:
      return false;
  }
}

std::optional<int64_t> LengthOf(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return value.text_length();
    case Kind::kList:
    case Kind::kTuple:
      return static_cast<int64_t>(value.items().size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().entries().size());
    case Kind::kView:
      return LengthOf(value.As<ViewObject>().dict);
    case Kind::kRange:
      return value.As<RangeObject>().length;
    default:
      return std::nullopt;
  }
}

absl::StatusOr<bool> IsLess(const Value& left, const Value& right, Heap& heap) {
  if (left.is_undefined() || right.is_undefined()) {
    return absl::InvalidArgumentError(left.is_undefined() ? left.text() : right.text());
  }
  RETURN_IF_ERROR(heap.Step(std::min(left.weight(), right.weight())));
  if (left.is_number() && right.is_number()) {
    if (left.is_integral() && right.is_integral()) return left.integer() < right.integer();
    return left.real() < right.real();
  }
  // UTF-8 orders as its code points do.
  if (left.is_string() && right.is_string()) return left.text() < right.text();
  if (left.kind() != right.kind() || !left.is_sequence()) {
    return absl::InvalidArgumentError(absl::StrCat("'<' not supported between instances of '",
                                                   TypeName(left), "' and '", TypeName(right),
                                                   "'"));
  }
  const size_t count = std::min(left.items().size(), right.items().size());
  for (size_t i = 0; i < count; ++i) {
    if (!IsEqual(left.items()[i], right.items()[i])) {
      return IsLess(left.items()[i], right.items()[i], heap);
    }
  }
  return left.items().size() < right.items().size();
}

absl::Status SortItems(bool reverse, Heap& heap, std::vector<SortItem>* items) {
  absl::Status error;
  std::stable_sort(items->begin(), items->end(), [&](const SortItem& a, const SortItem& b) {
    if (!error.ok()) return false;
    const auto less = reverse ? IsLess(b.key, a.key, heap) : IsLess(a.key, b.key, heap);
    if (!less.ok()) error = less.status();
    return less.ok() && *less;
  });
  return error;
}

absl::StatusOr<SliceIndices> ResolveSlice(const Value& start, const Value& stop, const Value& step,
                                          int64_t length) {
  for (const Value* bound : {&start, &stop, &step}) {
    if (bound->is_undefined() ||
        !(bound->is_missing() || bound->is_none() || bound->is_integral())) {
      return absl::InvalidArgumentError(
          absl::StrCat("slice indices must be integers or None, not ", TypeName(*bound)));
    }
  }
  SliceIndices indices;
  const Int wanted_step = step.is_integral() ? step.integer() : 1;
  if (wanted_step == 0) return absl::InvalidArgumentError("slice step cannot be zero");
  const bool backwards = wanted_step < 0;
  // Longer steps than the whole see one item at most, like a step of its length.
  indices.step = static_cast<int64_t>(
      std::clamp<Int>(wanted_step, -static_cast<Int>(length) - 1, static_cast<Int>(length) + 1));
  const int64_t low = backwards ? -1 : 0;
  const int64_t high = backwards ? length - 1 : length;
  const auto resolve = [&](const Value& bound, int64_t open) {
    if (!bound.is_integral()) return open;
    const Int index = bound.integer() < 0 ? bound.integer() + length : bound.integer();
    return static_cast<int64_t>(std::clamp<Int>(index, low, high));
  };
  indices.start = resolve(start, backwards ? high : low);
  const int64_t end = resolve(stop, backwards ? low : high);
  const int64_t distance = backwards ? indices.start - end : end - indices.start;
  const int64_t stride = backwards ? -indices.step : indices.step;
  indices.count = distance <= 0 ? 0 : (distance + stride - 1) / stride;
  return indices;
}

}  // namespace pergola::jinja
