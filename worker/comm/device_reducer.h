// Sums of a stage's ranks over activations in device memory. On the CPU the communicator adds them
// where they lie; GPUs that reach each other have a DeviceGroup, and for small messages a
// PeerReducer; others' go through host memory in f32, which adds them in rank order wherever the
// GPUs are and needs no path between them.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/peer_reducer.h"
#include "kernels/decoder_ops.h"
#include "kernels/device_group.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "worker/comm/communicator.h"

namespace pergola {

class DeviceReducer {
 public:
  // For tensors of up to `most_values`, f32 or `activation`. `communicator` may be null if the
  // stage has one rank, `group` if its devices do not reach each other. All are borrowed.
  DeviceReducer(Stream& stream, StageCommunicator* communicator, DeviceGroup* group,
                int64_t most_values, DType activation);

  // From now on messages that `peers` takes go that way. Borrowed, may be null.
  void UsePeers(PeerReducer* peers) { peers_ = peers; }

  // What the constructor allocates of the device's memory; `staged`: sums go through the host's.
  static int64_t PlannedBytes(bool staged, int64_t most_values, DType activation);
  int64_t bytes() const { return wide_.size(); }

  // x = the sum over the stage's ranks, rounded to x's dtype; the communicator's errors, the
  // group's and the stream's.
  absl::Status AllReduce(const Tensor& x);

  // AllReduce of the branch that the op adds to the stream (args.residual, or args.y of Add: this
  // rank's part before, unspecified after), and then the op: what a stage does between a branch and
  // the next one. With a product the norm is NormMatmul's.
  absl::Status AllReduceNorm(const RmsNormArgs& args, const MatmulArgs* product = nullptr);
  absl::Status AllReduceNorm(const LayerNormArgs& args, const MatmulArgs* product = nullptr);
  absl::Status AllReduceAdd(const AddArgs& args);

 private:
  bool ThroughPeers(const Tensor& part) const;
  template <typename Args>
  absl::Status SumAndNorm(const Args& args, const MatmulArgs* product);

  Stream& stream_;
  StageCommunicator* communicator_;
  DeviceGroup* group_;
  PeerReducer* peers_ = nullptr;
  DeviceBuffer staged_;  // [most_values] f32, pinned
  DeviceBuffer wide_;    // [most_values] f32, where activations are narrower
};

}  // namespace pergola
