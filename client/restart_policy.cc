#include "client/restart_policy.h"

#include <algorithm>

#include "base/limits.h"

namespace pergola {

std::optional<RestartPolicy::Time> RestartPolicy::Died(Time now, int exit_code) {
  // After work the flags and files were right: another group may have taken this one's name.
  if (exit_code == kExitUsage && !healthy_since_.has_value()) return std::nullopt;
  if (!ever_healthy_ && ++failed_starts_ >= kMaxFailedStarts) return std::nullopt;
  if (healthy_since_.has_value() && now - *healthy_since_ >= kHealthyFor) delay_ = kFirstDelay;
  const Time again = now + delay_;
  delay_ = std::min(2 * delay_, kLongestDelay);
  healthy_since_.reset();
  return again;
}

}  // namespace pergola
