// Collectives among devices: what the ranks of a stage, or the ranks of equal tp_rank in all
// stages, do with tensors in device memory. Each call is enqueued on the stream of the rank, in its
// order with the ops, and can be recorded with them. Not for the host's memory
// (worker/comm/communicator.h).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "kernels/tensor.h"

namespace pergola {

// Used from the rank's main thread only. The stream outlives the group, and the group outlives
// every recording that has its calls. Every rank makes the same collective calls in the same order
// with the same sizes, and records either all or none of them; each Send has one Receive.
class DeviceGroup {
 public:
  virtual ~DeviceGroup() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // A call gives an error at once where it cannot be enqueued; what goes wrong later, Health tells.

  // x = the sum over the ranks, the same bits on every rank, in an order of the device's choice and
  // rounded at each step: f32, f16 or bf16.
  virtual absl::Status AllReduce(const Tensor& x) = 0;
  // out[r * bytes ..] = rank r's `in`, which may lie in its place in `out`.
  virtual absl::Status AllGather(const void* in, int64_t bytes, void* out) = 0;
  // `data` = rank `root`'s.
  virtual absl::Status Broadcast(void* data, int64_t bytes, int root) = 0;
  // The stream goes on when `data` has left; that may be when the peer receives it.
  virtual absl::Status Send(const void* data, int64_t bytes, int peer) = 0;
  virtual absl::Status Receive(void* data, int64_t bytes, int peer) = 0;

  // Whether a device or a peer has failed since: to be asked while the stream is waited for, which
  // may then never end. Cheap. The status names device, group and rank.
  virtual absl::Status Health() = 0;
};

}  // namespace pergola
