// The engine's clock: microseconds of a monotonic clock whose zero is arbitrary. Time comes in as
// an argument, so tests and simulations pass any value.
#pragma once

#include <chrono>
#include <cstdint>

namespace pergola {

using TimeUs = int64_t;
inline constexpr TimeUs kNever = INT64_MAX;

// The clock that Engine runs on; deadlines given to it are of this clock. For the edges (threads,
// doors) only.
inline TimeUs SteadyNowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace pergola
