// The engine's clock: microseconds of a monotonic clock whose zero is arbitrary. Time comes in as an argument, so tests
// and simulations pass any value.
#pragma once

#include <cstdint>

namespace pergola {

using TimeUs = int64_t;
inline constexpr TimeUs kNever = INT64_MAX;

}  // namespace pergola
