// Short forms for absl::Status: early return and prefixing. Errors are made with
// absl::InvalidArgumentError(StrCat(..)).
#pragma once

#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace pergola {

// Debian's abseil has its own string_view; these two convert explicitly.
inline absl::string_view ToAbsl(std::string_view s) {
  return {s.data(), s.size()};
}
inline std::string_view ToStd(absl::string_view s) {
  return {s.data(), s.size()};
}

// The same code, with "prefix: " before the message; an OK status stays OK.
absl::Status Prefixed(const absl::Status& status, std::string_view prefix);

}  // namespace pergola

// Returns the status from the enclosing function unless it is OK.
#define RETURN_IF_ERROR(expression)                                  \
  do {                                                               \
    absl::Status return_if_error_status = (expression);              \
    if (!return_if_error_status.ok()) return return_if_error_status; \
  } while (false)

#define PERGOLA_CONCAT_INNER(a, b) a##b
#define PERGOLA_CONCAT(a, b) PERGOLA_CONCAT_INNER(a, b)

// ASSIGN_OR_RETURN(auto value, StatusOrExpression()): declares or assigns, or returns the error.
#define ASSIGN_OR_RETURN(target, expression) \
  ASSIGN_OR_RETURN_INNER(PERGOLA_CONCAT(status_or_, __LINE__), target, expression)
#define ASSIGN_OR_RETURN_INNER(temporary, target, expression) \
  auto temporary = (expression);                              \
  if (!temporary.ok()) return temporary.status();             \
  target = std::move(temporary).value()
