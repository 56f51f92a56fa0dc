// What the engine core measures of sequences and steps: counts and fixed-bucket histograms of
// times. Plain numbers of the engine thread, without lock or atomics; others see copies (Status).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "coordinator/engine/time.h"
#include "pergola/v1/admin.pb.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

class TimeHistogram {
 public:
  // 1, 2.5 and 5 per decade, from a tenth of the shortest step that people run (a small model on a
  // fast device: 1 ms) to beyond the longest wait that admission accepts (60 s). One set for all,
  // so that dashboards may add and compare them.
  static constexpr std::array<int64_t, 19> kBoundsUs = {
      100,       250,        500,        1'000,      2'500,      5'000,     10'000,
      25'000,    50'000,     100'000,    250'000,    500'000,    1'000'000, 2'500'000,
      5'000'000, 10'000'000, 25'000'000, 50'000'000, 100'000'000};

  // `times` equal durations that are `total_us` together; nothing if `times` is 0. A negative total
  // counts as 0.
  void Observe(int64_t total_us, uint64_t times = 1);

  uint64_t count() const;
  void CopyTo(v1::Histogram* out) const;

 private:
  std::array<uint64_t, kBoundsUs.size() + 1> counts_ = {};
  uint64_t sum_us_ = 0;
};

// The gaps between the tokens of one sequence. Tokens that come at one time share the gap before
// them: two after 10 ms are two gaps of 5 ms. Those that come with the first have none.
class TokenGaps {
 public:
  void OnToken(TimeUs now, TimeHistogram* gaps);
  // The gap before the newest tokens is known only when others follow, or never will.
  void OnEnd(TimeHistogram* gaps);

 private:
  TimeUs last_ = kNever;
  int64_t gap_us_ = 0;
  uint32_t sharing_ = 0;  // tokens since the gap
};

struct Measurements {
  TimeHistogram first_token;
  TimeHistogram token_gap;
  TimeHistogram queue_wait;
  uint64_t bad_logits = 0;
  uint64_t prompt_tokens = 0;
  uint64_t repeated_passes = 0;

  void CountEnd(absl::StatusCode code, v1::FinishReason reason);
  void CopyTo(v1::StatusResponse* status) const;

 private:
  std::array<uint64_t, v1::FinishReason_ARRAYSIZE> finishes_ = {};
  std::array<uint64_t, 17> errors_ = {};  // by canonical code; UNAUTHENTICATED, 16, is the last
};

// "LENGTH" and so on; empty for UNSPECIFIED.
const char* FinishName(v1::FinishReason reason);

}  // namespace pergola
