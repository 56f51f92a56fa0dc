// The coordinator's status as text for people.
#pragma once

#include <optional>
#include <string>

#include "pergola/v1/admin.pb.h"

namespace pergola {

// What happened per second between two looks at one coordinator.
struct StatusRates {
  double tokens = 0;
  double requests = 0;
  double plans = 0;
  double mean_batch = 0;  // entries per plan of those plans; 0 if there were none
  v1::Histogram first_token;
  v1::Histogram token_gap;
  v1::Histogram queue_wait;
};

// The time, in seconds, within which the share `quantile` of what was counted lies, as Prometheus'
// histogram_quantile() estimates it: even within a bucket, the last bound for what is beyond. None
// if nothing was counted.
std::optional<double> Quantile(const v1::Histogram& histogram, double quantile);

// None if no time passed between them on the coordinator's own clock, or if it was started anew.
std::optional<StatusRates> RatesBetween(const v1::StatusResponse& before,
                                        const v1::StatusResponse& after);

// Several lines: the coordinator, with a line of rates if there are any, then each group with its
// stages, hosts and blocks. Times are those of the rates, else of all since the start.
std::string StatusText(const v1::StatusResponse& status,
                       const std::optional<StatusRates>& rates = std::nullopt);

// "loading" and so on.
std::string GroupStateName(v1::GroupState state);

// `text` as it is drawn over what a terminal shows: from the top left corner, the rest of each line
// and of the screen cleared.
std::string Redrawn(const std::string& text);

}  // namespace pergola
