// The MPI side of starting a group: who runs where, which ranks share a stage, and agreement on
// whether all of them can go on. Everything here is collective and happens before the first step.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/comm/shm_communicator.h"

namespace pergola {

struct RankPlace {
  std::string host;
  int pid = 0;
  int node = 0;  // lowest world rank of the ranks that share memory with this one
};

// The ranks of one job. MPI objects live until the process ends.
class Group {
 public:
  // `provided` is what MPI_Init_thread gave. FAILED_PRECONDITION if that is below
  // MPI_THREAD_FUNNELED, INVALID_ARGUMENT if the world's size is not TP x PP or a stage spans
  // nodes.
  static absl::StatusOr<std::unique_ptr<Group>> Form(int provided, int tensor_parallel,
                                                     int pipeline_parallel);

  MPI_Comm world() const { return world_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  const std::vector<RankPlace>& places() const { return places_; }
  int ranks_on_node() const;
  // This rank's number among the ranks of its node.
  int rank_on_node() const;

  // Agrees on the lowest rank that has an error: `failed` is that rank, or -1; `code` is its exit
  // code.
  absl::Status AgreeOnFailure(bool failed_here, int exit_code, int* failed, int* code);
  absl::Status Barrier();
  absl::StatusOr<int64_t> Minimum(int64_t value);
  // Everyone's text (at most kMaxText bytes), by rank.
  static constexpr size_t kMaxText = 320;
  absl::StatusOr<std::vector<std::string>> GatherTexts(const std::string& text);

  // This rank's memory shared with its stage: made by the stage's leader, unlinked before it
  // returns.
  absl::StatusOr<std::shared_ptr<SharedRegion>> ShareStageRegion(const ShmOptions& options);

 private:
  absl::Status LearnPlaces();
  absl::Status CheckStages(int tensor_parallel, int pipeline_parallel) const;

  MPI_Comm world_ = MPI_COMM_NULL;
  MPI_Comm stage_ = MPI_COMM_NULL;
  int rank_ = 0;
  int size_ = 1;
  std::vector<RankPlace> places_;
};

}  // namespace pergola
