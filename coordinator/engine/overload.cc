#include "coordinator/engine/overload.h"

#include <algorithm>
#include <optional>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/engine/engine.h"

namespace pergola {
namespace {

constexpr char kReasonUrl[] = "pergola/refusal";
constexpr char kRetryUrl[] = "pergola/retry_us";

// A pace fades by 1/32 per place and is believed from the eighth on.
constexpr double kFade = 31.0 / 32;
constexpr double kBelievedPlaces = 8 * kFade;
// Retry delays: nobody is asked back sooner or later than this.
constexpr int64_t kLeastRetryUs = 100'000;
constexpr int64_t kMostRetryUs = 60'000'000;
// A full queue is worth another try when this share of it has gone.
constexpr uint64_t kRetryShare = 4;
// While the pace is unknown.
constexpr int64_t kBlindRetryUs = 1'000'000;

int64_t RetryAfter(double us) {
  if (us <= 0) return kBlindRetryUs;
  return static_cast<int64_t>(std::clamp<double>(us, kLeastRetryUs, kMostRetryUs));
}

}  // namespace

const char* RefusalName(Refusal refusal) {
  switch (refusal) {
    case Refusal::kQueueFull:
      return "QUEUE_FULL";
    case Refusal::kQueueBytes:
      return "QUEUE_BYTES";
    case Refusal::kQueueWait:
      return "QUEUE_WAIT";
    case Refusal::kDeadlineWait:
      return "DEADLINE_WAIT";
    case Refusal::kDeadline:
      return "DEADLINE";
    case Refusal::kDraining:
      return "DRAINING";
    case Refusal::kTooManyCalls:
      return "TOO_MANY_CALLS";
    case Refusal::kTextPoolFull:
      return "TEXT_POOL_FULL";
    case Refusal::kInvalidRequest:
      return "INVALID_REQUEST";
  }
  PERGOLA_CHECK(false);
}

absl::Status RefusalStatus(Refusal refusal, const std::string& message, int64_t retry_us) {
  absl::StatusCode code = absl::StatusCode::kResourceExhausted;
  if (refusal == Refusal::kDeadline) code = absl::StatusCode::kDeadlineExceeded;
  if (refusal == Refusal::kDraining) code = absl::StatusCode::kUnavailable;
  absl::Status status(code, message);
  status.SetPayload(kReasonUrl, absl::Cord(RefusalName(refusal)));
  if (retry_us >= 0) status.SetPayload(kRetryUrl, absl::Cord(absl::StrCat(retry_us)));
  return status;
}

std::string RefusalReason(const absl::Status& status) {
  const auto payload = status.GetPayload(kReasonUrl);
  return payload ? std::string(*payload) : std::string();
}

int64_t RetryDelayUs(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryUrl);
  int64_t delay = -1;
  if (!payload || !absl::SimpleAtoi(std::string(*payload), &delay)) return -1;
  return delay;
}

void QueuePace::Observe(bool waits, TimeUs now) {
  if (!waits) {
    since_ = kNever;
  } else if (since_ == kNever) {
    since_ = now;
  }
}

void QueuePace::Placed(TimeUs now) {
  const TimeUs since = since_ == kNever ? now : since_;
  time_us_ = time_us_ * kFade + static_cast<double>(now - since);
  places_ = places_ * kFade + 1;
  since_ = now;
}

double QueuePace::PlaceUs(TimeUs now) const {
  if (places_ < kBelievedPlaces * kFade) return 0;
  const double stands = since_ == kNever ? 0 : static_cast<double>(now - since_);
  return std::max(time_us_ / places_, (time_us_ + stands) / (places_ + 1));
}

absl::Status CheckLoad(const EngineOptions& options, const Load& load, const Asked& asked,
                       TimeUs now) {
  const double quarter_us =
      load.place_us * static_cast<double>(std::max<uint64_t>(1, load.queued / kRetryShare));
  if (load.queued >= options.max_queued_sequences) {
    return RefusalStatus(Refusal::kQueueFull,
                         absl::StrCat("the waiting queue is full: ", load.queued, " of ",
                                      options.max_queued_sequences, " sequences"),
                         RetryAfter(quarter_us));
  }
  const auto bytes = static_cast<int64_t>(asked.prompt_tokens * sizeof(int32_t));
  if (bytes > options.max_queued_bytes - load.queued_bytes) {
    return RefusalStatus(
        Refusal::kQueueBytes,
        absl::StrCat("the waiting queue is full: ", load.queued_bytes, " bytes of prompts and ",
                     bytes, " more exceed ", options.max_queued_bytes),
        RetryAfter(quarter_us));
  }
  const double wait_us = load.place_us * static_cast<double>(load.queued);
  const auto limit_us = static_cast<double>(options.max_queue_wait_us);
  if (options.max_queue_wait_us > 0 && wait_us > limit_us) {
    return RefusalStatus(Refusal::kQueueWait,
                         absl::StrCat("the wait for a slot is about ", wait_us / 1000,
                                      " ms, the limit is ", limit_us / 1000, " ms"),
                         RetryAfter(wait_us - limit_us));
  }
  if (asked.deadline == kNever) return absl::OkStatus();
  const auto left_us = static_cast<double>(asked.deadline - now);
  const double steps = static_cast<double>(std::max<uint64_t>(1, asked.least_new_tokens));
  const double alone_us =
      load.step_us * steps + load.prompt_row_us * static_cast<double>(asked.prompt_tokens - 1);
  if (left_us <= 0 || alone_us > left_us) {
    return RefusalStatus(
        Refusal::kDeadline,
        absl::StrCat("the deadline is ", left_us / 1000, " ms away, alone it would take about ",
                     alone_us / 1000, " ms"),
        -1);
  }
  if (wait_us + alone_us > left_us) {
    return RefusalStatus(
        Refusal::kDeadlineWait,
        absl::StrCat("the deadline is ", left_us / 1000, " ms away, waiting and computing would",
                     " take about ", (wait_us + alone_us) / 1000, " ms"),
        RetryAfter(wait_us + alone_us - left_us));
  }
  return absl::OkStatus();
}

}  // namespace pergola
