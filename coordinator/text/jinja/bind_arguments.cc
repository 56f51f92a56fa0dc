#include "coordinator/text/jinja/bind_arguments.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace pergola::jinja {

absl::StatusOr<std::vector<Value>> BindArguments(const Parameters& parameters,
                                                 const Arguments& arguments) {
  const size_t count = parameters.names.size();
  if (arguments.positional.size() > count) {
    return absl::InvalidArgumentError(absl::StrCat(parameters.function, "() takes at most ", count,
                                                   " arguments (", arguments.positional.size(),
                                                   " given)"));
  }
  std::vector<Value> bound = arguments.positional;
  bound.resize(count);
  for (const auto& [name, value] : arguments.keyword) {
    const auto* found = std::find(parameters.names.begin(), parameters.names.end(), name);
    if (found == parameters.names.end() || !parameters.by_name) {
      return absl::InvalidArgumentError(
          absl::StrCat(parameters.function, "() got an unexpected keyword argument '", name, "'"));
    }
    Value& place = bound[static_cast<size_t>(found - parameters.names.begin())];
    if (!place.is_missing()) {
      return absl::InvalidArgumentError(
          absl::StrCat(parameters.function, "() got multiple values for argument '", name, "'"));
    }
    place = value;
  }
  for (size_t i = 0; i < parameters.required; ++i) {
    if (!bound[i].is_missing()) continue;
    return absl::InvalidArgumentError(absl::StrCat(parameters.function,
                                                   "() missing required argument '",
                                                   *(parameters.names.begin() + i), "'"));
  }
  return bound;
}

absl::StatusOr<Int> IntegerOr(const Value& value, Int fallback, std::string_view function) {
  if (value.is_missing()) return fallback;
  if (value.is_integral()) return value.integer();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(function), "(): '", TypeName(value),
                                                 "' object cannot be interpreted as an integer"));
}

absl::StatusOr<int64_t> CountOr(const Value& value, int64_t fallback, std::string_view function) {
  ASSIGN_OR_RETURN(const Int number, IntegerOr(value, fallback, function));
  return static_cast<int64_t>(std::clamp<Int>(number, INT64_MIN / 2, INT64_MAX / 2));
}

absl::StatusOr<std::string> StringOr(const Value& value, std::string_view fallback,
                                     std::string_view function) {
  if (value.is_missing()) return std::string(fallback);
  if (value.is_string()) return value.text();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(function), "() expects a str, not ", TypeName(value)));
}

}  // namespace pergola::jinja
