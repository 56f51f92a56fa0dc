// Jinja's filters: "value | NAME(arguments)", all of its own but pprint, random, striptags, urlize,
// wordwrap and xmlattr, which have no use in a prompt; tojson is transformers'.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

bool IsFilter(std::string_view name);
absl::StatusOr<Value> ApplyFilter(const std::string& name, const Value& value,
                                  const Arguments& arguments, Heap& heap);

// One application of a filter.
struct FilterCall {
  const std::string& name;
  const Value& value;
  const Arguments& arguments;
  Heap& heap;

  absl::StatusOr<std::vector<Value>> Bind(std::initializer_list<const char*> names,
                                          size_t required = 0) const;
};
using Filter = absl::StatusOr<Value> (*)(const FilterCall&);

// The filters of texts and numbers (text_filters.cc) and of collections (list_filters.cc); null
// for an unknown name.
Filter FindTextFilter(std::string_view name);
Filter FindListFilter(std::string_view name);

}  // namespace pergola::jinja
