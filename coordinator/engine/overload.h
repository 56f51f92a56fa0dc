// What is refused at once because it would only wait: bounds on the waiting queue, on the estimated
// wait, and deadlines that the measured pace cannot meet. Pure: no clock, no lock; constant time.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "coordinator/engine/time.h"

namespace pergola {

struct EngineOptions;

// Why a request was refused: a stable word for ErrorInfo.reason and for metrics.
enum class Refusal {
  kQueueFull,     // RESOURCE_EXHAUSTED: max_queued_sequences
  kQueueBytes,    // RESOURCE_EXHAUSTED: max_queued_bytes
  kQueueWait,     // RESOURCE_EXHAUSTED: max_queue_wait_us
  kDeadlineWait,  // RESOURCE_EXHAUSTED: with the wait before it, it cannot meet its deadline
  kDeadline,      // DEADLINE_EXCEEDED: not even alone; coming back with as little time is of no use
  kDraining,      // UNAVAILABLE
  // Refused by doors, which make the status:
  kTooManyCalls,    // RESOURCE_EXHAUSTED: max_calls
  kTextPoolFull,    // RESOURCE_EXHAUSTED: max_text_jobs, max_text_bytes
  kInvalidRequest,  // INVALID_ARGUMENT, NOT_FOUND: what it asks for is wrong or not served
};
inline constexpr int kRefusals = 9;
// "QUEUE_FULL", ...
const char* RefusalName(Refusal refusal);

// A status that carries its reason and, unless `retry_us` is negative, when to come back.
absl::Status RefusalStatus(Refusal refusal, const std::string& message, int64_t retry_us);
// The name of the refusal that a status carries; empty if it is none.
std::string RefusalReason(const absl::Status& status);
// When to come back, in microseconds; negative: the status does not say.
int64_t RetryDelayUs(const absl::Status& status);

// How fast the queue moves: the mean time per sequence that leaves it for a slot, while somebody
// waits and some group answers. The last few dozen count.
class QueuePace {
 public:
  // Whether the queue could move: somebody waits and a group serves.
  void Observe(bool waits, TimeUs now);
  // A sequence left the queue for a slot. Waits must have been observed.
  void Placed(TimeUs now);
  // Microseconds per place; 0 while too little is known. Grows while nothing moves.
  double PlaceUs(TimeUs now) const;

 private:
  TimeUs since_ = kNever;  // of the last placement or of the queue's beginning; kNever: none waits
  double time_us_ = 0;     // faded sums
  double places_ = 0;
};

// What is known of the load when a request comes.
struct Load {
  uint64_t queued = 0;
  int64_t queued_bytes = 0;
  double place_us = 0;  // QueuePace
  // Of the fastest group: a lone sequence's step, and a prompt token more, cached ones counted with
  // the share that was found in the cache so far; 0: not known yet.
  double step_us = 0;
  double prompt_row_us = 0;
};

struct Asked {
  uint64_t prompt_tokens = 1;  // and received ones
  uint64_t least_new_tokens = 1;
  TimeUs deadline = kNever;
};

// OK, or the refusal.
absl::Status CheckLoad(const EngineOptions& options, const Load& load, const Asked& asked,
                       TimeUs now);

}  // namespace pergola
