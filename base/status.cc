#include "base/status.h"

namespace pergola {

absl::Status Prefixed(const absl::Status& status, std::string_view prefix) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(ToAbsl(prefix), ": ", status.message()));
}

}  // namespace pergola
