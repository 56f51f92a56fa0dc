// When to start a dead child again: at once at first, then later and later, and never after an exit
// that says that trying again cannot help (unless that start had worked before). Pure: the clock
// comes in as an argument.
#pragma once

#include <chrono>
#include <optional>

namespace pergola {

class RestartPolicy {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::milliseconds kFirstDelay{100};
  static constexpr std::chrono::milliseconds kLongestDelay{5000};
  // A child that was healthy for so long starts with the first delay again.
  static constexpr std::chrono::seconds kHealthyFor{60};
  // A child that has never been healthy is broken, not unlucky: 0.1 + 0.2 + 0.4 + 0.8 s of waiting
  // bound its attempts.
  static constexpr int kMaxFailedStarts = 5;

  void Started() { healthy_since_.reset(); }
  // The child does its work. The first call after Started counts.
  void Healthy(Time now) {
    if (!healthy_since_.has_value()) healthy_since_ = now;
    ever_healthy_ = true;
  }
  // When to start it again, or nothing if it must not be. `exit_code` is 128 + signal after a
  // signal, as in a shell.
  std::optional<Time> Died(Time now, int exit_code);

 private:
  std::optional<Time> healthy_since_;
  bool ever_healthy_ = false;
  int failed_starts_ = 0;
  std::chrono::milliseconds delay_ = kFirstDelay;
};

}  // namespace pergola
