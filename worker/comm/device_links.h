// How the GPUs of a group reach each other: NCCL among the ranks of a stage and along each column
// of equal tp_rank through the stages, or nothing but the host's communicators; and for small sums
// each other's memory, where the GPUs of a stage reach it. Decided once, for all ranks alike,
// before anything is loaded.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/peer_reducer.h"
#include "kernels/device_group.h"
#include "kernels/stream.h"
#include "model/layout.h"
#include "worker/comm/backoff.h"
#include "worker/comm/communicator.h"
#include "worker/comm/wait_board.h"

namespace pergola {

// kAuto: NCCL where it can be had.
enum class Collectives : uint8_t { kAuto, kNccl, kHost };

// Instead of a number of bytes: as many as are faster through peer memory than through NCCL, tried
// when the links are opened (worker/comm/sum_trial.h); none without NCCL.
inline constexpr int64_t kTriedPeerSum = -1;

// Every rank's text by rank; collective.
using GatherTexts = std::function<absl::StatusOr<std::vector<std::string>>(const std::string&)>;

struct DeviceLinksOptions {
  RankLayout layout;
  Collectives choice = Collectives::kAuto;
  std::string host;         // that the rank runs on
  int64_t hidden = 0;       // values of a row
  int64_t most_values = 0;  // of a step's hidden state
  // Of a sum that goes through peer memory, unless `choice` is kHost; 0: none does; or
  // kTriedPeerSum. The ranks of the stage meet in `communicator` for it, on the CPU too; a rank
  // that then does not come to a sum within `peer_wait_ms` is lost.
  int64_t peer_sum_bytes = 0;
  int64_t peer_wait_ms = 60'000;
  StageCommunicator* communicator = nullptr;
  // Whether to wait busily at first: pays only while every rank has cores of its own.
  bool spin = false;
  // Both may be empty. `background` moves the group's messages on and is called while waiting.
  WaitBoard* board = nullptr;
  std::function<bool()> background;
};

class DeviceLinks {
 public:
  // Collective over all ranks of the group, also those on the CPU; null where the host serves
  // alone. With kAuto there is no NCCL where a rank computes on the CPU, the program has none, or
  // two ranks share a GPU, which it does not take; rank 0 logs why, and the leader of a stage why
  // its GPUs have no peer memory. With kNccl the first two are refused in words
  // (FAILED_PRECONDITION), the third by NCCL, unless each rank has its own NCCL_HOSTID. INTERNAL
  // with NCCL's words. A group of one rank has no links and gathers nothing. `stream` is borrowed
  // and outlives the links.
  static absl::StatusOr<std::unique_ptr<DeviceLinks>> Open(Stream& stream,
                                                           const DeviceLinksOptions& options,
                                                           const GatherTexts& gather);

  // Null in stages of one rank, and without NCCL.
  DeviceGroup* stage() const { return stage_.get(); }
  // The ranks of this tp_rank, by stage; null in a group of one stage, and without NCCL.
  DeviceGroup* column() const { return column_.get(); }
  // Null: no sum goes through peer memory.
  PeerReducer* peers() const { return peers_.get(); }
  // What they took of the device's memory: NCCL's as the device says itself, of the rank where that
  // is most; the peers' as planned.
  int64_t bytes() const { return bytes_; }
  // For the numerics id: NCCL adds in an order of its own, and in the activations' type; peers in
  // rank order, with the norm behind it summed by more threads than a norm has alone.
  std::string numerics() const;

  // Stream::Synchronize that also sees a peer's failure, and moves the group's messages on. The
  // wait is published as "`operation` `sequence`".
  absl::Status Synchronize(Stream& stream, const char* operation, uint64_t sequence);
  // Stream::Wait and Stream::Reached likewise. `ahead`: the stream has more to do behind the event,
  // and so the host need not be there at once.
  absl::Status Wait(Stream& stream, StreamEvent& event, const char* operation, uint64_t sequence,
                    bool ahead);
  absl::StatusOr<bool> Reached(Stream& stream, StreamEvent& event);

 private:
  explicit DeviceLinks(const DeviceLinksOptions& options) : options_(options) {}
  absl::Status ChooseGroups(Stream& stream, const GatherTexts& gather);
  absl::Status OpenGroups(Stream& stream, const GatherTexts& gather);
  absl::Status OpenPeers(Stream& stream);
  absl::StatusOr<int64_t> TryPeers(Stream& stream);
  PeerOptions OptionsOfPeers(int64_t most_bytes) const;
  absl::Status CheckHealth() const;
  // Once in so many calls.
  absl::Status CheckHealthAtTimes();
  absl::Status WaitUntil(const std::function<bool()>& done, const char* operation,
                         uint64_t sequence, const BackoffOptions& pauses);

  const DeviceLinksOptions options_;
  std::unique_ptr<DeviceGroup> stage_;
  std::unique_ptr<DeviceGroup> column_;
  std::unique_ptr<PeerReducer> peers_;
  int64_t bytes_ = 0;
  int polls_ = 0;  // since the last look at the groups' health
};

}  // namespace pergola
