#include "worker/comm/device_links.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "worker/comm/backoff.h"

namespace pergola {
namespace {

// With cores of their own ranks poll, as cudaStreamSynchronize does, for longer than a step that
// only decodes takes (some 30 ms), and then sleep little beside a step that takes longer.
BackoffOptions WithinStep(bool spin) {
  return {spin ? 20'000 : 20, 10, 200};
}
// A device that has its next step already need not be watched so closely.
constexpr BackoffOptions kAheadWait = {0, 20, 50, 500};
// Asking NCCL for errors is cheap, but not as cheap as asking the stream.
constexpr int kPollsPerHealth = 64;

}  // namespace

std::string DeviceLinks::numerics() const {
  std::string text = stage_ != nullptr ? ", sums by nccl" : "";
  // What a trial finds may differ between groups that are alike.
  if (options_.peer_sum_bytes == kTriedPeerSum) {
    if (stage_ != nullptr) absl::StrAppend(&text, ", by peers where they are faster");
  } else if (peers_ != nullptr) {
    absl::StrAppend(&text, ", by peers to ", peers_->most_bytes(), " bytes");
  }
  return text;
}

absl::Status DeviceLinks::CheckHealth() const {
  if (stage_ != nullptr) RETURN_IF_ERROR(stage_->Health());
  return column_ == nullptr ? absl::OkStatus() : column_->Health();
}

absl::Status DeviceLinks::CheckHealthAtTimes() {
  if (++polls_ < kPollsPerHealth) return absl::OkStatus();
  polls_ = 0;
  return CheckHealth();
}

absl::Status DeviceLinks::WaitUntil(const std::function<bool()>& done, const char* operation,
                                    uint64_t sequence, const BackoffOptions& pauses) {
  std::optional<ScopedWait> wait;
  if (options_.board != nullptr) wait.emplace(*options_.board, operation, sequence, -1);
  Backoff backoff(pauses);
  while (!done()) {
    RETURN_IF_ERROR(CheckHealthAtTimes());
    if (options_.background) options_.background();
    backoff.Pause();
  }
  return absl::OkStatus();
}

absl::Status DeviceLinks::Synchronize(Stream& stream, const char* operation, uint64_t sequence) {
  RETURN_IF_ERROR(
      WaitUntil([&] { return stream.Idle(); }, operation, sequence, WithinStep(options_.spin)));
  // An error of this rank's own is its news; NCCL has only followed it.
  RETURN_IF_ERROR(stream.Synchronize());
  return CheckHealth();
}

absl::Status DeviceLinks::Wait(Stream& stream, StreamEvent& event, const char* operation,
                               uint64_t sequence, bool ahead) {
  RETURN_IF_ERROR(WaitUntil([&] { return stream.Reached(event); }, operation, sequence,
                            ahead ? kAheadWait : WithinStep(options_.spin)));
  RETURN_IF_ERROR(stream.Wait(event));
  return CheckHealth();
}

absl::StatusOr<bool> DeviceLinks::Reached(Stream& stream, StreamEvent& event) {
  if (stream.Reached(event)) return true;
  RETURN_IF_ERROR(CheckHealthAtTimes());
  return false;
}

}  // namespace pergola
