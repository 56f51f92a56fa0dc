// Which sums of a stage go through peer memory: tried on the machine itself when a group starts,
// for links between GPUs differ more than any constant could know.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/peer_reducer.h"
#include "kernels/device_group.h"
#include "kernels/stream.h"
#include "worker/comm/communicator.h"

namespace pergola {

// Where a trial stops: what is larger is bound by bandwidth, which is NCCL's strength.
inline constexpr int64_t kMostTriedBytes = 1 << 20;

// A sum with residual and norm behind it, both ways, on the slowest rank.
struct SumTime {
  int64_t bytes = 0;
  double nccl_s = 0, peers_s = 0;
};

struct SumTrial {
  Stream& stream;
  DeviceGroup& nccl;
  PeerReducer& peers;  // not watched by the stream: PeerOptions::watched
  StageCommunicator& communicator;
  int64_t hidden = 0;  // values of a row
};

// Sums of 1, 4, 16, ... rows of f32, up to peers.most_bytes(), recorded where the stream records.
// Collective; the same on every rank. UNAVAILABLE on every rank, naming one, where peer memory gave
// a wrong sum or a rank did not come: nothing else is harmed by it. Errors of the stream and of
// NCCL, on the other ranks as ABORTED.
absl::StatusOr<std::vector<SumTime>> TrySums(const SumTrial& trial);

// The last size up to which peers are faster without a gap; 0: at no size.
int64_t LargestFasterSum(absl::Span<const SumTime> times);

}  // namespace pergola
