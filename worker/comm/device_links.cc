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

absl::Status DeviceLinks::Synchronize(Stream& stream, const char* operation, uint64_t sequence) {
  std::optional<ScopedWait> wait;
  if (options_.board != nullptr) wait.emplace(*options_.board, operation, sequence, -1);
  Backoff backoff(WithinStep(options_.spin));
  for (int polls = 1; !stream.Idle(); ++polls) {
    if (polls % kPollsPerHealth == 0) RETURN_IF_ERROR(CheckHealth());
    if (options_.background) options_.background();
    backoff.Pause();
  }
  // An error of this rank's own is its news; NCCL has only followed it.
  RETURN_IF_ERROR(stream.Synchronize());
  return CheckHealth();
}

}  // namespace pergola
