// Stands in for NCCL in programs that are built without it.
#include "kernels/cuda/nccl_group.h"

namespace pergola {
namespace {

absl::Status NoNccl() {
  return absl::FailedPreconditionError(
      "this program was built without NCCL; build it where nccl.h and libnccl are");
}

}  // namespace

absl::StatusOr<std::string> NcclDeviceId(Stream& /*stream*/) {
  return NoNccl();
}

absl::StatusOr<std::string> NewNcclId() {
  return NoNccl();
}

absl::StatusOr<std::unique_ptr<DeviceGroup>> OpenNcclGroup(Stream& /*stream*/,
                                                           const NcclGroupOptions& /*options*/) {
  return NoNccl();
}

}  // namespace pergola
