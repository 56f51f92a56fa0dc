// Arguments of built-in functions, filters and methods, by position or name.
#pragma once

#include <initializer_list>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

struct Parameters {
  const char* function;  // for errors
  std::initializer_list<const char*> names;
  size_t required = 0;
  bool by_name = true;  // Python's str methods mostly take none
};

// One value per parameter, missing where none was given.
absl::StatusOr<std::vector<Value>> BindArguments(const Parameters& parameters,
                                                 const Arguments& arguments);

// The bound value as what it must be; `fallback` where it is missing. Errors name the function.
absl::StatusOr<Int> IntegerOr(const Value& value, Int fallback, std::string_view function);
absl::StatusOr<std::string> StringOr(const Value& value, std::string_view fallback,
                                     std::string_view function);
// An integer, cut to what an int64_t holds.
absl::StatusOr<int64_t> CountOr(const Value& value, int64_t fallback, std::string_view function);

}  // namespace pergola::jinja
