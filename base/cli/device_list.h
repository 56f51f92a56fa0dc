// The GPUs that --devices names: read in one way by `pergola up`, before anything is started, and
// by the worker.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/status.h"

namespace pergola {

inline constexpr int kMaxDevices = 64;  // of a node

// "0,1,2,3": each number once; none of "". INVALID_ARGUMENT with the list and what is wrong.
inline absl::StatusOr<std::vector<int>> ParseDevices(const std::string& list) {
  std::vector<int> devices;
  if (list.empty()) return devices;
  for (const absl::string_view part : absl::StrSplit(list, ',')) {
    int index = -1;
    if (!absl::SimpleAtoi(part, &index) || index < 0 || index >= kMaxDevices) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--devices is '", list, "': '", part, "' is not a number from 0 to ", kMaxDevices - 1));
    }
    if (std::find(devices.begin(), devices.end(), index) != devices.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--devices is '", list, "': ", index, " stands there twice"));
    }
    devices.push_back(index);
  }
  return devices;
}

}  // namespace pergola
