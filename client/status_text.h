// The coordinator's status as text for people.
#pragma once

#include <string>

#include "pergola/v1/admin.pb.h"

namespace pergola {

// Several lines: the coordinator, then each group with its stages, hosts and blocks.
std::string StatusText(const v1::StatusResponse& status);

// "loading" and so on.
std::string GroupStateName(v1::GroupState state);

}  // namespace pergola
