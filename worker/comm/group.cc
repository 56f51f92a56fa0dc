#include "worker/comm/group.h"

#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <random>

#include "base/status.h"
#include "worker/comm/mpi_transport.h"

namespace pergola {
namespace {

// The host name is the last of the three fields of a place: it may hold anything.
std::string PackPlace(const RankPlace& place) {
  return absl::StrCat(place.pid, " ", place.node, " ", place.host);
}

RankPlace UnpackPlace(const std::string& text) {
  RankPlace place;
  char* end = nullptr;
  place.pid = static_cast<int>(std::strtol(text.c_str(), &end, 10));
  place.node = static_cast<int>(std::strtol(end, &end, 10));
  place.host = *end == ' ' ? end + 1 : end;
  return place;
}

// A name nobody else has: 64 random bits. It lives for the moment between making and unlinking.
std::string RegionName() {
  std::random_device random;
  const uint64_t number = (static_cast<uint64_t>(random()) << 32) | random();
  return absl::StrCat("/pergola-", absl::Hex(number, absl::kZeroPad16));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Group>> Group::Form(int provided, int tensor_parallel,
                                                   int pipeline_parallel) {
  auto group = std::make_unique<Group>();
  RETURN_IF_ERROR(MpiStatus(MPI_Comm_dup(MPI_COMM_WORLD, &group->world_), "MPI_Comm_dup"));
  RETURN_IF_ERROR(MpiStatus(MPI_Comm_set_errhandler(group->world_, MPI_ERRORS_RETURN),
                            "MPI_Comm_set_errhandler"));
  MPI_Comm_rank(group->world_, &group->rank_);
  MPI_Comm_size(group->world_, &group->size_);
  if (provided < MPI_THREAD_FUNNELED) {
    return absl::FailedPreconditionError(
        absl::StrCat("MPI offers thread level ", provided, "; MPI_THREAD_FUNNELED (",
                     static_cast<int>(MPI_THREAD_FUNNELED), ") is needed"));
  }
  const int64_t wanted = static_cast<int64_t>(tensor_parallel) * pipeline_parallel;
  if (wanted != group->size_) {
    return absl::InvalidArgumentError(absl::StrCat("mpirun started ", group->size_, " ranks; --tp ",
                                                   tensor_parallel, " x --pp ", pipeline_parallel,
                                                   " needs ", wanted));
  }
  RETURN_IF_ERROR(group->LearnPlaces());
  RETURN_IF_ERROR(group->CheckStages(tensor_parallel, pipeline_parallel));
  RETURN_IF_ERROR(MpiStatus(
      MPI_Comm_split(group->world_, group->rank_ / tensor_parallel, group->rank_, &group->stage_),
      "MPI_Comm_split"));
  return group;
}

absl::Status Group::LearnPlaces() {
  MPI_Comm node = MPI_COMM_NULL;
  RETURN_IF_ERROR(
      MpiStatus(MPI_Comm_split_type(world_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node),
                "MPI_Comm_split_type"));
  RankPlace mine;
  MPI_Request request = MPI_REQUEST_NULL;
  RETURN_IF_ERROR(MpiStatus(MPI_Iallreduce(&rank_, &mine.node, 1, MPI_INT, MPI_MIN, node, &request),
                            "MPI_Iallreduce"));
  RETURN_IF_ERROR(MpiWait(&request, "MPI_Iallreduce"));
  char host[kMaxText / 2] = {};
  gethostname(host, sizeof(host) - 1);
  mine.host = host;
  mine.pid = getpid();
  ASSIGN_OR_RETURN(const std::vector<std::string> texts, GatherTexts(PackPlace(mine)));
  for (const std::string& text : texts) places_.push_back(UnpackPlace(text));
  return absl::OkStatus();
}

absl::Status Group::CheckStages(int tensor_parallel, int pipeline_parallel) const {
  for (int stage = 0; stage < pipeline_parallel; ++stage) {
    const RankPlace& leader = places_[static_cast<size_t>(stage) * tensor_parallel];
    for (int tp_rank = 1; tp_rank < tensor_parallel; ++tp_rank) {
      const int rank = stage * tensor_parallel + tp_rank;
      if (places_[rank].node == leader.node) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("stage ", stage, " spans nodes: rank ", stage * tensor_parallel, " is on ",
                       leader.host, ", rank ", rank, " on ", places_[rank].host, "; the ",
                       tensor_parallel, " ranks of a stage must share a node"));
    }
  }
  return absl::OkStatus();
}

int Group::ranks_on_node() const {
  int count = 0;
  for (const RankPlace& place : places_) count += place.node == places_[rank_].node ? 1 : 0;
  return count;
}

int Group::rank_on_node() const {
  int count = 0;
  for (int rank = 0; rank < rank_; ++rank) {
    count += places_[rank].node == places_[rank_].node ? 1 : 0;
  }
  return count;
}

absl::Status Group::AgreeOnFailure(bool failed_here, int exit_code, int* failed, int* code) {
  // Exit codes are below 256, so the least number is the lowest failed rank with its code.
  const int64_t none = INT64_MAX;
  ASSIGN_OR_RETURN(const int64_t least,
                   Minimum(failed_here ? static_cast<int64_t>(rank_) * 256 + exit_code : none));
  *failed = least == none ? -1 : static_cast<int>(least / 256);
  *code = least == none ? 0 : static_cast<int>(least % 256);
  return absl::OkStatus();
}

absl::Status Group::Barrier() {
  MPI_Request request = MPI_REQUEST_NULL;
  RETURN_IF_ERROR(MpiStatus(MPI_Ibarrier(world_, &request), "MPI_Ibarrier"));
  return MpiWait(&request, "MPI_Ibarrier");
}

absl::StatusOr<int64_t> Group::Minimum(int64_t value) {
  int64_t least = 0;
  MPI_Request request = MPI_REQUEST_NULL;
  RETURN_IF_ERROR(MpiStatus(
      MPI_Iallreduce(&value, &least, 1, MPI_INT64_T, MPI_MIN, world_, &request), "MPI_Iallreduce"));
  RETURN_IF_ERROR(MpiWait(&request, "MPI_Iallreduce"));
  return least;
}

absl::StatusOr<std::vector<std::string>> Group::GatherTexts(const std::string& text) {
  std::vector<char> mine(kMaxText, 0);
  std::vector<char> all(kMaxText * size_, 0);
  std::memcpy(mine.data(), text.data(), std::min(text.size(), kMaxText - 1));
  MPI_Request request = MPI_REQUEST_NULL;
  RETURN_IF_ERROR(MpiStatus(MPI_Iallgather(mine.data(), kMaxText, MPI_CHAR, all.data(), kMaxText,
                                           MPI_CHAR, world_, &request),
                            "MPI_Iallgather"));
  RETURN_IF_ERROR(MpiWait(&request, "MPI_Iallgather"));
  std::vector<std::string> texts;
  texts.reserve(size_);
  for (int rank = 0; rank < size_; ++rank) texts.emplace_back(all.data() + rank * kMaxText);
  return texts;
}

absl::StatusOr<std::shared_ptr<SharedRegion>> Group::ShareStageRegion(const ShmOptions& options) {
  const int64_t bytes = ShmCommunicator::RegionBytes(options);
  char name[64] = {};
  absl::StatusOr<std::shared_ptr<SharedRegion>> region = absl::UnknownError("not made");
  if (options.rank == 0) {
    std::strncpy(name, RegionName().c_str(), sizeof(name) - 1);
    region = SharedRegion::Create(name, bytes);
    if (region.ok()) ShmCommunicator::Format(**region);
  }
  MPI_Request request = MPI_REQUEST_NULL;
  RETURN_IF_ERROR(
      MpiStatus(MPI_Ibcast(name, sizeof(name), MPI_CHAR, 0, stage_, &request), "MPI_Ibcast"));
  RETURN_IF_ERROR(MpiWait(&request, "MPI_Ibcast"));
  if (options.rank != 0) region = SharedRegion::Open(name, bytes);
  // All have opened it, or failed to: the name has served.
  RETURN_IF_ERROR(MpiStatus(MPI_Ibarrier(stage_, &request), "MPI_Ibarrier"));
  RETURN_IF_ERROR(MpiWait(&request, "MPI_Ibarrier"));
  if (options.rank == 0) SharedRegion::Unlink(name);
  return region;
}

}  // namespace pergola
