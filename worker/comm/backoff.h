// How a rank that must poll (MPI has no blocking wait that sleeps) waits without burning its core:
// first busily, if cores are free, then in sleeps that grow with the time waited, so that they add
// a bounded share of it.
#pragma once

#include <chrono>
#include <cstdint>
#include <thread>

namespace pergola {

struct BackoffOptions {
  int busy_polls = 200;  // polls before the first sleep
  int64_t first_sleep_us = 20;
  int64_t longest_sleep_us = 1000;
  int64_t busy_us = 0;  // at least this long before the first sleep
};

class Backoff {
 public:
  explicit Backoff(const BackoffOptions& options) : options_(options) {}
  // Called after each poll that found nothing.
  void Pause() {
    if (++polls_ <= options_.busy_polls) return;
    const std::chrono::microseconds busy(options_.busy_us);
    if (options_.busy_us > 0 && Clock::now() < begin_ + busy) return;
    std::this_thread::sleep_for(std::chrono::microseconds(sleep_us_));
    sleep_us_ += sleep_us_ / 2;
    if (sleep_us_ > options_.longest_sleep_us) sleep_us_ = options_.longest_sleep_us;
  }

 private:
  using Clock = std::chrono::steady_clock;
  const BackoffOptions options_;
  const Clock::time_point begin_ = Clock::now();
  int polls_ = 0;
  int64_t sleep_us_ = options_.first_sleep_us;
};

}  // namespace pergola
