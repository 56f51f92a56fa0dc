// Memory of each rank's GPU that the GPUs of all ranks of a stage read and write: opened through
// CUDA IPC between processes, directly between threads. Here it is made and exchanged;
// peer_reduce.cu says what lies in it and uses it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/peer_reducer.h"

namespace pergola {

// A node's GPUs; the kernels hold one load per peer in registers.
inline constexpr int kMostPeers = 8;
// Blocks of a launch, of which each meets the same block of every peer.
inline constexpr int kMostPeerBlocks = 64;
inline constexpr int64_t kPeerFlagBytes = int64_t{sizeof(uint64_t)} * kMostPeerBlocks * kMostPeers;

// What kernels get. Every buffer is
//   flags [kMostPeerBlocks][kMostPeers] u64: how far block b of rank r has come, written by rank r;
//   parts [2][most_bytes]: what this rank adds, of even and of odd launches;
//   slices [2][slice_bytes]: this rank's slice of the sum, of launches in two shots.
struct PeerSpace {
  uint8_t* buffers[kMostPeers] = {};  // by rank
  uint64_t* epochs = nullptr;         // [kMostPeerBlocks], own: launches so far, by block
  uint64_t* lost = nullptr;           // own; not 0 after a wait that was too long
  uint64_t* report = nullptr;         // host memory; then 1 + the rank that was waited for
  uint64_t wait_ns = 0;
  int64_t most_bytes = 0;  // of a message
  int64_t slice_bytes = 0;
  int rank = 0, ranks = 1;
  int blocks = 0;  // of every launch
};

class PeerMemory {
 public:
  // Collective: every rank calls it, with the device current that it computes on, and gets the same
  // verdict. FAILED_PRECONDITION naming a rank and what is missing if some GPU of the stage cannot
  // reach another's memory; the gathering function's errors; RESOURCE_EXHAUSTED without memory.
  static absl::StatusOr<std::unique_ptr<PeerMemory>> Create(const PeerOptions& options);
  // Between processes the last launch of every rank must be over before the first rank does this,
  // and before memory is used for something else than the end of the processes, Close.
  ~PeerMemory();
  PeerMemory(const PeerMemory&) = delete;
  PeerMemory& operator=(const PeerMemory&) = delete;

  // Collective: gives others' memory back, so that each rank may free its own. Nothing is launched
  // any more.
  absl::Status Close();

  const PeerSpace& space() const { return space_; }
  // UNAVAILABLE naming the rank once a launch has waited in vain. After a wait for the stream.
  absl::Status status() const;

 private:
  struct Card;
  class Buffer;

  explicit PeerMemory(const PeerOptions& options);
  absl::Status Allocate(int64_t bytes);
  absl::Status Describe(int64_t bytes, Card* card);
  absl::Status Open(const Card& own, const Card& other, int rank);
  absl::Status OpenAll(const std::vector<Card>& cards);
  void CloseOpened();
  // The same status on every rank: OK if `mine` is everywhere, else the lowest rank's.
  absl::Status Agree(const absl::Status& mine) const;

  const PeerOptions options_;
  PeerSpace space_;
  // Own at `rank`; others' where they are threads of this process, each shared with its maker,
  // which may be gone while a launch here still reads.
  std::shared_ptr<Buffer> buffers_[kMostPeers];
  void* opened_[kMostPeers] = {};  // of other processes
  void* state_ = nullptr;          // epochs, lost
};

}  // namespace pergola
