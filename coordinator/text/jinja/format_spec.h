// Python's format specifications, [[fill]align][sign][#][0][width][,][.precision][type], for texts
// and numbers. Used by str.format, % and a few filters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

struct FormatSpec {
  std::string fill = " ";
  char align = '\0';  // < > ^ = or the type's own
  char sign = '-';    // - + or blank
  bool alternate = false;
  int64_t width = 0;
  char grouping = '\0';    // , or _
  int64_t precision = -1;  // not given
  char type = '\0';
};

absl::StatusOr<FormatSpec> ParseFormatSpec(std::string_view text);
// INVALID_ARGUMENT if the type does not fit the value.
absl::StatusOr<std::string> FormatValue(const Value& value, const FormatSpec& spec, Heap& heap);
// With exactly so many digits behind the point; 'f', 'e' or 'g'.
std::string FixedDigits(double value, int64_t precision, char type);

}  // namespace pergola::jinja
