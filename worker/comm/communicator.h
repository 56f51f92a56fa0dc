// Collectives among the ranks of one stage, in the host's memory: one shared-memory implementation
// serves processes and threads. What lies on GPUs has kernels/device_group.h. Called from the
// rank's main thread only; every rank makes the same calls in the same order with the same sizes.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"

namespace pergola {

class StageCommunicator {
 public:
  virtual ~StageCommunicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // data[i] = ((rank 0's + rank 1's) + rank 2's) + ... : added in rank order, the same bits on
  // every rank (DESIGN I4).
  virtual absl::Status AllReduce(float* data, int64_t count) = 0;
  // out = every rank's `bytes` bytes in rank order: out[r * bytes ..] is rank r's `in`. `in` may
  // lie in place in `out`.
  virtual absl::Status AllGather(const void* in, int64_t bytes, void* out) = 0;
  // `root`'s bytes to all. Ranks other than root may wait here for long when the group is idle:
  // `idle` says that this wait is the usual state and must not burn CPU.
  virtual absl::Status Broadcast(void* data, int64_t bytes, int root, bool idle) = 0;
  // From now on `watch` is asked some times a second during idle waits, and its error ends them.
  virtual void WatchIdleWaits(std::function<absl::Status()> watch) = 0;
};

}  // namespace pergola
