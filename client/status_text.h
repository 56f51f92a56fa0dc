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
};

// None if no time passed between them on the coordinator's own clock, or if it was started anew.
std::optional<StatusRates> RatesBetween(const v1::StatusResponse& before,
                                        const v1::StatusResponse& after);

// Several lines: the coordinator, with a line of rates if there are any, then each group with its
// stages, hosts and blocks.
std::string StatusText(const v1::StatusResponse& status,
                       const std::optional<StatusRates>& rates = std::nullopt);

// "loading" and so on.
std::string GroupStateName(v1::GroupState state);

// `text` as it is drawn over what a terminal shows: from the top left corner, the rest of each line
// and of the screen cleared.
std::string Redrawn(const std::string& text);

}  // namespace pergola
