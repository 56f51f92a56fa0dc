// Numbers from text, as Python's int() and float() read them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

// `base` from 2 to 36, or 0 for the prefix's; nothing if the text is no number, does not fit, or
// the base is none.
std::optional<Int> ParseInt(std::string_view text, int64_t base);
std::optional<double> ParseFloat(std::string_view text);

}  // namespace pergola::jinja
