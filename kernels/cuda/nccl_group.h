// NCCL behind DeviceGroup. Programs without CUDA or without NCCL link no_nccl.cc in its place.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/device_group.h"
#include "kernels/stream.h"

namespace pergola {

// Which GPU a stream is on, the same text for every process that uses it on this machine; two ranks
// of a group must be on two. FAILED_PRECONDITION in words where there is no NCCL.
absl::StatusOr<std::string> NcclDeviceId(Stream& stream);

// What the ranks of a new group must share: made by one, carried to the others. Any bytes.
absl::StatusOr<std::string> NewNcclId();

struct NcclGroupOptions {
  std::string id;    // NewNcclId's
  std::string name;  // for messages: "the ranks of stage 1"
  int rank = 0;
  int size = 1;
  // What will be asked of it: NCCL connects the ranks the way each size and kind of message needs,
  // and takes memory for that, at the first such message. All of that happens in OpenNcclGroup.
  int64_t most_bytes = 0;
  bool collectives = false;  // AllReduce, AllGather and Broadcast
  bool hops = false;         // from each rank to the next
};

// Returns when all ranks have called it, after a message of each size has gone through. The
// device's free memory before and after tells what NCCL took. INTERNAL with NCCL's words. `stream`
// is on a GPU, borrowed.
absl::StatusOr<std::unique_ptr<DeviceGroup>> OpenNcclGroup(Stream& stream,
                                                           const NcclGroupOptions& options);

}  // namespace pergola
