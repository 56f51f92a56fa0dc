// Filters of collections.
#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/bind_arguments.h"
#include "coordinator/text/jinja/filters.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/jinja/text_of.h"
#include "coordinator/text/jinja/unicode.h"
#include "coordinator/text/jinja/value_tests.h"

namespace pergola::jinja {
namespace {

// A path like "function.name" or "0.id", applied part by part. Of nothing: the item itself.
class Getter {
 public:
  Getter(const Value& attribute, Heap& heap) : heap_(heap) {
    if (attribute.is_missing() || attribute.is_none()) return;
    if (!attribute.is_string()) {
      parts_.push_back(attribute);
      return;
    }
    std::string_view rest = attribute.text();
    for (;;) {
      const size_t dot = std::min(rest.find('.'), rest.size());
      parts_.push_back(PartOf(rest.substr(0, dot)));
      if (dot == rest.size()) break;
      rest.remove_prefix(dot + 1);
    }
  }
  void ReplaceUndefined(const Value& with) { replacement_ = with; }
  void IgnoreCase() { ignores_case_ = true; }

  absl::StatusOr<Value> operator()(Value item) const {
    for (const Value& part : parts_) {
      ASSIGN_OR_RETURN(item, SubscriptOf(item, part, heap_));
      const bool replaces = item.is_undefined() && !replacement_.is_missing();
      if (replaces && !replacement_.is_none()) item = replacement_;
    }
    if (ignores_case_ && item.is_string()) return heap_.String(ToLower(item.text()));
    return item;
  }

 private:
  Value PartOf(std::string_view part) const {
    const bool is_index =
        !part.empty() && part.size() < 18 &&
        std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!is_index) return heap_.String(std::string(part));
    return Value::Integer(std::stoll(std::string(part)));
  }

  Heap& heap_;
  std::vector<Value> parts_;
  Value replacement_;
  bool ignores_case_ = false;
};

absl::StatusOr<Value> Length(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  const auto length = LengthOf(call.value);
  if (length) return Value::Integer(*length);
  return absl::InvalidArgumentError(
      absl::StrCat("object of type '", TypeName(call.value), "' has no len()"));
}

absl::StatusOr<Value> First(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  if (call.value.kind() == Kind::kGenerator) {
    auto& generator = call.value.Mutable<GeneratorObject>();
    if (generator.position < generator.items.size()) return generator.items[generator.position++];
  }
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  if (!items.empty()) return items.front();
  return call.heap.Undefined("No first item, sequence was empty.");
}

absl::StatusOr<Value> Last(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  if (!LengthOf(call.value)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", TypeName(call.value), "' object is not reversible"));
  }
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  if (!items.empty()) return items.back();
  return call.heap.Undefined("No last item, sequence was empty.");
}

absl::StatusOr<Value> List(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  ASSIGN_OR_RETURN(auto items, ItemsOf(call.value, call.heap));
  return call.heap.List(std::move(items));
}

absl::StatusOr<Value> Items(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  if (call.value.is_undefined()) return call.heap.Generator({});
  if (!call.value.is_dict()) {
    return absl::InvalidArgumentError("items: can only get item pairs from a mapping");
  }
  ASSIGN_OR_RETURN(auto items,
                   ItemsOf(call.heap.View(call.value, ViewObject::Part::kItems), call.heap));
  return call.heap.Generator(std::move(items));
}

absl::StatusOr<Value> Join(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"d", "attribute"}));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  std::string separator;
  if (!bound[0].is_missing()) {
    ASSIGN_OR_RETURN(separator, TextOf(bound[0], call.heap));
  }
  const Getter getter(bound[1], call.heap);
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) RETURN_IF_ERROR(call.heap.Append(separator, &out));
    ASSIGN_OR_RETURN(const Value item, getter(items[i]));
    RETURN_IF_ERROR(AppendText(item, call.heap, &out));
  }
  return call.heap.String(std::move(out));
}

absl::StatusOr<Value> Reverse(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  if (call.value.is_string()) {
    ASSIGN_OR_RETURN(const SliceIndices indices,
                     ResolveSlice(Value(), Value(), Value::Integer(-1), *LengthOf(call.value)));
    return SliceOf(call.value, indices, call.heap);
  }
  ASSIGN_OR_RETURN(auto items, ItemsOf(call.value, call.heap));
  std::reverse(items.begin(), items.end());
  if (call.value.kind() == Kind::kGenerator) return call.heap.List(std::move(items));
  return call.heap.Generator(std::move(items));
}

absl::StatusOr<Value> Sort(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"reverse", "case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  std::vector<Getter> getters;
  // "a,b" sorts by a and then by b.
  std::string_view rest = bound[2].is_string() ? std::string_view(bound[2].text()) : "";
  for (bool more = true; more;) {
    const size_t comma = std::min(rest.find(','), rest.size());
    getters.emplace_back(
        bound[2].is_string() ? call.heap.String(std::string(rest.substr(0, comma))) : bound[2],
        call.heap);
    if (!IsTrue(bound[1])) getters.back().IgnoreCase();
    more = comma < rest.size();
    if (more) rest.remove_prefix(comma + 1);
  }
  std::vector<SortItem> order;
  for (const Value& item : items) {
    std::vector<Value> keys;
    for (const Getter& getter : getters) {
      ASSIGN_OR_RETURN(Value key, getter(item));
      keys.push_back(std::move(key));
    }
    order.push_back({call.heap.List(std::move(keys)), item});
  }
  RETURN_IF_ERROR(SortItems(IsTrue(bound[0]), call.heap, &order));
  std::vector<Value> sorted;
  sorted.reserve(order.size());
  for (SortItem& entry : order) sorted.push_back(std::move(entry.item));
  return call.heap.List(std::move(sorted));
}

absl::StatusOr<Value> DictSort(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"case_sensitive", "by", "reverse"}));
  ASSIGN_OR_RETURN(const std::string by, StringOr(bound[1], "key", call.name));
  if (by != "key" && by != "value") {
    return absl::InvalidArgumentError("you can only sort by either \"key\" or \"value\"");
  }
  if (call.value.is_undefined()) return absl::InvalidArgumentError(call.value.text());
  if (!call.value.is_dict()) {
    return absl::InvalidArgumentError(
        absl::StrCat("dictsort expects a dict, not ", TypeName(call.value)));
  }
  std::vector<SortItem> order;
  for (const auto& [key, value] : call.value.dict().entries()) {
    Value sorted_by = by == "key" ? key : value;
    if (!IsTrue(bound[0]) && sorted_by.is_string()) {
      sorted_by = call.heap.String(ToLower(sorted_by.text()));
    }
    order.push_back({std::move(sorted_by), call.heap.Tuple({key, value})});
  }
  RETURN_IF_ERROR(SortItems(IsTrue(bound[2]), call.heap, &order));
  std::vector<Value> sorted;
  sorted.reserve(order.size());
  for (SortItem& entry : order) sorted.push_back(std::move(entry.item));
  return call.heap.List(std::move(sorted));
}

absl::StatusOr<Value> Unique(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  Getter getter(bound[1], call.heap);
  if (!IsTrue(bound[0])) getter.IgnoreCase();
  DictObject seen;
  std::vector<Value> unique;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(const Value key, getter(item));
    RETURN_IF_ERROR(call.heap.Step(key.weight()));
    if (!IsHashable(key)) {
      return call.heap.Generator(std::move(unique), absl::InvalidArgumentError(absl::StrCat(
                                                        "unhashable type: '", TypeName(key), "'")));
    }
    if (seen.Find(key) != nullptr) continue;
    seen.Set(key, Value::None());
    unique.push_back(item);
  }
  return call.heap.Generator(std::move(unique));
}

absl::StatusOr<Value> MinMax(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"case_sensitive", "attribute"}));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  if (items.empty()) {
    return call.heap.Undefined("No aggregated item, sequence was empty.");
  }
  Getter getter(bound[1], call.heap);
  if (!IsTrue(bound[0])) getter.IgnoreCase();
  ASSIGN_OR_RETURN(Value best_key, getter(items[0]));
  size_t best = 0;
  for (size_t i = 1; i < items.size(); ++i) {
    ASSIGN_OR_RETURN(Value key, getter(items[i]));
    ASSIGN_OR_RETURN(const bool better, call.name == "min" ? IsLess(key, best_key, call.heap)
                                                           : IsLess(best_key, key, call.heap));
    if (!better) continue;
    best = i;
    best_key = std::move(key);
  }
  return items[best];
}

absl::StatusOr<Value> Sum(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"attribute", "start"}));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  Value total = bound[1].is_missing() ? Value::Integer(0) : bound[1];
  if (total.is_string()) return absl::InvalidArgumentError("sum() can't sum strings");
  const Getter getter(bound[0], call.heap);
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(const Value term, getter(item));
    ASSIGN_OR_RETURN(total, Arithmetic(Op::kAdd, total, term, call.heap));
  }
  return total;
}

absl::StatusOr<Value> Batch(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"linecount", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const int64_t size, CountOr(bound[0], 0, call.name));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  const bool fills = !bound[1].is_missing() && !bound[1].is_none();
  std::vector<Value> lines;
  std::vector<Value> line;
  for (const Value& item : items) {
    if (static_cast<int64_t>(line.size()) == size) {
      lines.push_back(call.heap.List(std::move(line)));
      line.clear();
    }
    line.push_back(item);
  }
  if (!line.empty()) {
    if (fills && size > 0) {
      RETURN_IF_ERROR(call.heap.CheckBytes(static_cast<uint64_t>(size) * sizeof(Value)));
      while (static_cast<int64_t>(line.size()) < size) line.push_back(bound[1]);
    }
    lines.push_back(call.heap.List(std::move(line)));
  }
  return call.heap.Generator(std::move(lines));
}

absl::StatusOr<Value> Slice(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"slices", "fill_with"}, 1));
  ASSIGN_OR_RETURN(const int64_t slices, CountOr(bound[0], 0, call.name));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  if (slices == 0) return absl::InvalidArgumentError("integer division or modulo by zero");
  if (slices < 0) return call.heap.Generator({});
  RETURN_IF_ERROR(call.heap.CheckBytes(static_cast<uint64_t>(slices) * sizeof(Value)));
  const auto length = static_cast<int64_t>(items.size());
  const int64_t size = length / slices, with_extra = length % slices;
  const bool fills = !bound[1].is_missing() && !bound[1].is_none();
  std::vector<Value> parts;
  int64_t begin = 0;
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t end = begin + size + (i < with_extra ? 1 : 0);
    std::vector<Value> part(items.begin() + begin, items.begin() + end);
    if (fills && i >= with_extra) part.push_back(bound[1]);
    parts.push_back(call.heap.List(std::move(part)));
    RETURN_IF_ERROR(call.heap.Step());
    begin = end;
  }
  return call.heap.Generator(std::move(parts));
}

absl::StatusOr<Value> GroupBy(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"attribute", "default", "case_sensitive"}, 1));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(call.value, call.heap));
  Getter getter(bound[0], call.heap), shown(bound[0], call.heap);
  getter.ReplaceUndefined(bound[1]);
  shown.ReplaceUndefined(bound[1]);
  if (!IsTrue(bound[2])) getter.IgnoreCase();
  std::vector<SortItem> order;
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value key, getter(item));
    order.push_back({std::move(key), item});
  }
  RETURN_IF_ERROR(SortItems(/*reverse=*/false, call.heap, &order));
  std::vector<Value> groups;
  for (size_t begin = 0; begin < order.size();) {
    std::vector<Value> members;
    size_t end = begin;
    for (; end < order.size() && IsEqual(order[end].key, order[begin].key); ++end) {
      RETURN_IF_ERROR(call.heap.Step(order[end].key.weight()));
      members.push_back(order[end].item);
    }
    if (end == begin) members.push_back(order[end++].item);  // a key unequal to itself: nan
    ASSIGN_OR_RETURN(Value grouper, shown(members[0]));
    groups.push_back(call.heap.Group(std::move(grouper), call.heap.List(std::move(members))));
    begin = end;
  }
  return call.heap.List(std::move(groups));
}

absl::StatusOr<Value> Attr(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"name"}, 1));
  ASSIGN_OR_RETURN(const std::string name, StringOr(bound[0], "", call.name));
  if (call.value.is_undefined()) return absl::InvalidArgumentError(call.value.text());
  Value attribute = BuiltinAttribute(call.value, name, call.heap);
  if (!attribute.is_missing()) return attribute;
  return call.heap.Undefined(
      absl::StrCat("'", TypeName(call.value), " object' has no attribute '", name, "'"));
}

// Applies `each` to all items. An error is the generator's, raised when it is read so far.
template <typename Each>
absl::StatusOr<Value> Lazily(const FilterCall& call, const Each& each) {
  if (!IsTrue(call.value)) return call.heap.Generator({});
  std::vector<Value> made;
  auto items = ItemsOf(call.value, call.heap);
  if (!items.ok()) return call.heap.Generator({}, items.status());
  for (const Value& item : *items) {
    RETURN_IF_ERROR(call.heap.Step());
    absl::StatusOr<Value> result = each(item);
    if (!result.ok()) return call.heap.Generator(std::move(made), result.status());
    if (!result->is_missing()) made.push_back(*std::move(result));
  }
  return call.heap.Generator(std::move(made));
}

absl::StatusOr<Value> MapByAttribute(const FilterCall& call) {
  Value attribute, fallback;
  for (const auto& [name, value] : call.arguments.keyword) {
    if (name == "attribute") {
      attribute = value;
    } else if (name == "default") {
      fallback = value;
    } else {
      return call.heap.Generator({}, absl::InvalidArgumentError(absl::StrCat(
                                         "map: unexpected keyword argument '", name, "'")));
    }
  }
  Getter getter(attribute, call.heap);
  getter.ReplaceUndefined(fallback);
  return Lazily(call, getter);
}

absl::StatusOr<Value> Map(const FilterCall& call) {
  if (call.arguments.positional.empty()) {
    for (const auto& [name, value] : call.arguments.keyword) {
      if (name == "attribute") return MapByAttribute(call);
    }
    return call.heap.Generator({}, absl::InvalidArgumentError("map requires a filter argument"));
  }
  const Value& name = call.arguments.positional[0];
  if (!name.is_string()) return absl::InvalidArgumentError("map expects the name of a filter");
  const Arguments rest = {{call.arguments.positional.begin() + 1, call.arguments.positional.end()},
                          call.arguments.keyword};
  return Lazily(call,
                [&](const Value& item) { return ApplyFilter(name.text(), item, rest, call.heap); });
}

// select, reject, selectattr and rejectattr.
absl::StatusOr<Value> Select(const FilterCall& call) {
  const bool by_attribute = call.name == "selectattr" || call.name == "rejectattr";
  const bool keeps = call.name == "select" || call.name == "selectattr";
  const auto& positional = call.arguments.positional;
  if (by_attribute && positional.empty()) {
    return call.heap.Generator({},
                               absl::InvalidArgumentError("missing parameter for attribute name"));
  }
  const size_t test = by_attribute ? 1 : 0;
  const Getter getter(by_attribute ? positional[0] : Value(), call.heap);
  Arguments rest;
  rest.keyword = call.arguments.keyword;
  std::string name;
  if (positional.size() > test) {
    if (!positional[test].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(call.name, " expects the name of a test"));
    }
    name = positional[test].text();
    rest.positional.assign(positional.begin() + static_cast<int64_t>(test) + 1, positional.end());
  }
  return Lazily(call, [&](const Value& item) -> absl::StatusOr<Value> {
    ASSIGN_OR_RETURN(const Value tested, getter(item));
    bool passes = IsTrue(tested);
    if (!name.empty()) {
      ASSIGN_OR_RETURN(passes, ApplyTest(name, tested, rest, call.heap));
    }
    return passes == keeps ? item : Value();
  });
}

}  // namespace

Filter FindListFilter(std::string_view name) {
  static const std::map<std::string_view, Filter> kFilters = {
      {"attr", Attr},       {"batch", Batch},     {"count", Length},      {"dictsort", DictSort},
      {"first", First},     {"groupby", GroupBy}, {"items", Items},       {"join", Join},
      {"last", Last},       {"length", Length},   {"list", List},         {"map", Map},
      {"max", MinMax},      {"min", MinMax},      {"reject", Select},     {"rejectattr", Select},
      {"reverse", Reverse}, {"select", Select},   {"selectattr", Select}, {"slice", Slice},
      {"sort", Sort},       {"sum", Sum},         {"unique", Unique},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace pergola::jinja
