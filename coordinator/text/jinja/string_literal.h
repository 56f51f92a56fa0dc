// The escapes of a string literal, as Python's.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace pergola::jinja {

// What stands between the quotes, unescaped; INVALID_ARGUMENT for a broken escape or a surrogate.
absl::StatusOr<std::string> UnescapeString(std::string_view literal);

}  // namespace pergola::jinja
