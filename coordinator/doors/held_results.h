// What a call holds of its results until all are there (best_of, GenerateBatch): bounded for the
// call and for all calls together, so that nobody's answer grows beyond a message or the machine.
#pragma once

#include <atomic>
#include <cstddef>
#include <utility>

#include "absl/status/status.h"
#include "base/limits.h"

namespace pergola {

// All calls together: sixteen answers of the largest size, or thousands of usual ones.
inline constexpr size_t kMaxHeldResultBytes = size_t{1} << 30;

// One call: its answer fits a message, with room for statuses (a message on the wire is smaller
// than in memory, which is what is counted).
inline constexpr size_t kMaxHeldPerCallBytes = size_t{kMaxMessageBytes} - (size_t{1} << 20);

// The bytes of all calls. Any thread.
class ResultBudget {
 public:
  explicit ResultBudget(size_t limit = kMaxHeldResultBytes) : limit_(limit) {}
  bool TryTake(size_t bytes);
  void Give(size_t bytes) { used_.fetch_sub(bytes); }
  size_t limit() const { return limit_; }
  size_t used() const { return used_.load(); }

 private:
  const size_t limit_;
  std::atomic<size_t> used_{0};
};

// The bytes of one call; gives them back at its end. Not thread-safe.
class HeldResults {
 public:
  HeldResults() = default;  // holds nothing and may not Add
  // `budget` is borrowed and outlives this.
  HeldResults(ResultBudget* budget, size_t limit) : budget_(budget), limit_(limit) {}
  ~HeldResults() { Clear(); }
  HeldResults(HeldResults&& other) noexcept { *this = std::move(other); }
  HeldResults& operator=(HeldResults&& other) noexcept;

  // RESOURCE_EXHAUSTED, naming sizes and limit, where the call or all calls would hold too much;
  // then nothing is added.
  absl::Status Add(size_t bytes);
  void Clear();

 private:
  ResultBudget* budget_ = nullptr;
  size_t limit_ = 0;
  size_t held_ = 0;
};

}  // namespace pergola
