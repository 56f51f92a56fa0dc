// The StageCommunicator of CPU stages: one shared region, one barrier. Sums are formed in rank
// order whichever way the work is divided, so the bits depend on neither message size nor chunking
// (DESIGN I4).
//
// Region: header | in[2][size][chunk] | out[chunk]. A round copies every rank's part to in[round %
// 2], meets at the barrier, and reads. A rank writes in[k] again two rounds later, after a barrier
// that its peers reach only when they have read; so a round costs one barrier. A large all-reduce
// adds a second one: each rank sums only its slice into `out`, and all copy `out`.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "worker/comm/communicator.h"
#include "worker/comm/shared_region.h"
#include "worker/comm/wait_board.h"

namespace pergola {

struct ShmOptions {
  int rank = 0;
  int size = 1;
  int first_world_rank = 0;  // of the stage: published waits name world ranks
  // Whether to spin before sleeping: pays only while every rank has cores of its own.
  bool spin = false;
  // Bytes per rank and round; a multiple of 64. What two ranks write and read of 256 KiB stays in a
  // second-level cache (all_reduce_bench: 1 MiB takes longer with half and with twice as much), and
  // a prompt chunk of 512 rows takes a few dozen rounds.
  int64_t chunk_bytes = 256 << 10;
  WaitBoard* board = nullptr;  // borrowed
  // Moves messages between stages on; true while some are under way. Called once per collective,
  // also by a stage of one rank, and during waits: MPI moves nothing by itself, and the next stage
  // would starve during this one's step.
  std::function<bool()> background;
};

class ShmCommunicator : public StageCommunicator {
 public:
  static int64_t RegionBytes(const ShmOptions& options);
  // Puts the header into a new region. Called once, by the maker, before another rank has the
  // region.
  static void Format(SharedRegion& region);

  ShmCommunicator(std::shared_ptr<SharedRegion> region, const ShmOptions& options);

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  absl::Status AllReduce(float* data, int64_t count) override;
  absl::Status AllGather(const void* in, int64_t bytes, void* out) override;
  absl::Status Broadcast(void* data, int64_t bytes, int root, bool idle) override;

  void WatchIdleWaits(std::function<absl::Status()> watch) override { watch_ = std::move(watch); }

  // Makes every present and later wait of all ranks return UNAVAILABLE. Any thread.
  void Abandon();

 private:
  struct Header;
  enum class Urgency { kNormal, kIdle };

  absl::Status Barrier(const char* operation, Urgency urgency);
  bool RunBackground() const { return options_.background && options_.background(); }
  bool SpinForGeneration(uint32_t generation) const;
  absl::Status SleepForGeneration(uint32_t generation, Urgency urgency);
  int FirstMissingRank() const;
  uint8_t* In(int rank) const;  // of this round
  uint8_t* Out() const;
  void SumSlice(int64_t begin, int64_t end, float* out) const;
  absl::Status ReduceSmall(float* data, int64_t count);
  absl::Status ReduceLarge(float* data, int64_t count);

  const std::shared_ptr<SharedRegion> region_;  // shared with the ranks that are threads
  const ShmOptions options_;
  Header* const header_;
  std::function<absl::Status()> watch_;
  uint64_t round_ = 0;     // selects the half of `in`
  uint64_t barriers_ = 0;  // passed by this rank
};

}  // namespace pergola
