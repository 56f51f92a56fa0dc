// The times are of ranks that take turns on one GPU and talk through sockets: an upper bound of
// what a step costs in gpu_probe ranks, nothing about NVLink.
#include "tests/gpu/collectives.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/nccl_group.h"
#include "kernels/decoder_ops.h"
#include "tests/gpu/forked_ranks.h"
#include "tests/gpu/nccl_environment.h"
#include "tests/gpu/report.h"
#include "worker/comm/shared_region.h"
#include "worker/comm/wait_board.h"

namespace pergola {
namespace {

constexpr double kTimeoutSeconds = 60;
constexpr int64_t kMostBytes = 1 << 20;
constexpr int64_t kSizes[] = {8 << 10, 128 << 10, 1 << 20};  // of an all-reduce, bytes
constexpr int kRepeats = 10;

struct Board {
  std::atomic<int32_t> id_bytes{0};
  char id[1024] = {};
  double seconds[std::size(kSizes)] = {};  // by rank 0
  double hop_seconds = 0;
};

// Small whole numbers: their sums are exact in every type and order.
float ValueOf(int rank, int64_t i) {
  return static_cast<float>((i * 5 + rank * 3) % 13);
}

absl::StatusOr<std::string> ShareId(int rank, Board* board) {
  if (rank == 0) {
    ASSIGN_OR_RETURN(const std::string id, NewNcclId());
    if (id.size() > sizeof(board->id)) return absl::InternalError("an NCCL id is too long");
    std::memcpy(board->id, id.data(), id.size());
    board->id_bytes.store(static_cast<int32_t>(id.size()), std::memory_order_release);
  }
  while (board->id_bytes.load(std::memory_order_acquire) == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return std::string(board->id, static_cast<size_t>(board->id_bytes));
}

class Runner {
 public:
  Runner(Stream& stream, DeviceGroup& group)
      : stream_(stream), group_(group), data_(stream, kMostBytes), wide_(stream, 2 * kMostBytes) {}

  absl::Status CheckSum(DType dtype, int64_t count);
  absl::Status CheckGather(int64_t count);
  absl::Status CheckHop(int64_t count);
  absl::StatusOr<double> TimeSum(int64_t bytes) {
    return Time([&] {
      return group_.AllReduce(Tensor(data_.data(), DType::kBF16, {1, bytes / 2}));
    });
  }
  absl::StatusOr<double> TimeHop(int64_t bytes) {
    return Time([&] { return Hop(bytes); });
  }

 private:
  absl::StatusOr<double> Time(const std::function<absl::Status()>& call);
  float* wide() const { return reinterpret_cast<float*>(wide_.data()); }
  absl::Status Put(int rank, float* to, int64_t count) {
    host_.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) host_[static_cast<size_t>(i)] = ValueOf(rank, i);
    stream_.CopyToDevice(to, host_.data(), count * 4);
    return stream_.Synchronize();
  }
  // Compares with want(i).
  template <typename Want>
  absl::Status Compare(const char* what, const float* from, int64_t count, const Want& want) {
    host_.assign(static_cast<size_t>(count), -1);
    stream_.CopyToHost(host_.data(), from, count * 4);
    RETURN_IF_ERROR(stream_.Synchronize());
    for (int64_t i = 0; i < count; ++i) {
      const float got = host_[static_cast<size_t>(i)];
      if (got != want(i)) {
        return absl::InternalError(
            absl::StrCat(what, " of ", count, " values: ", got, " at ", i, ", not ", want(i)));
      }
    }
    return absl::OkStatus();
  }
  absl::Status Hop(int64_t bytes) {
    const int rank = group_.rank();
    if (rank > 0) RETURN_IF_ERROR(group_.Receive(data_.data(), bytes, rank - 1));
    if (rank + 1 == group_.size()) return absl::OkStatus();
    return group_.Send(data_.data(), bytes, rank + 1);
  }

  Stream& stream_;
  DeviceGroup& group_;
  DeviceBuffer data_, wide_;
  std::vector<float> host_;
};

absl::Status Runner::CheckSum(DType dtype, int64_t count) {
  RETURN_IF_ERROR(Put(group_.rank(), wide(), count));
  const Tensor f32(wide(), DType::kF32, {1, count});
  const Tensor x(data_.data(), dtype, {1, count});
  CopyRows(stream_, CopyRowsArgs{f32, nullptr, x});
  RETURN_IF_ERROR(group_.AllReduce(x));
  CopyRows(stream_, CopyRowsArgs{x, nullptr, f32});
  return Compare("all-reduce", wide(), count, [&](int64_t i) {
    float sum = 0;
    for (int rank = 0; rank < group_.size(); ++rank) sum += ValueOf(rank, i);
    return sum;
  });
}

absl::Status Runner::CheckGather(int64_t count) {
  float* own = wide() + group_.rank() * count;
  RETURN_IF_ERROR(Put(group_.rank(), own, count));
  RETURN_IF_ERROR(group_.AllGather(own, count * 4, wide()));
  return Compare("all-gather", wide(), count * group_.size(),
                 [&](int64_t i) { return ValueOf(static_cast<int>(i / count), i % count); });
}

// Rank 0's values through all ranks.
absl::Status Runner::CheckHop(int64_t count) {
  auto* data = reinterpret_cast<float*>(data_.data());
  RETURN_IF_ERROR(Put(group_.rank(), data, count));
  RETURN_IF_ERROR(Hop(count * 4));
  return Compare("hop", data, count, [](int64_t i) { return ValueOf(0, i); });
}

// Of one of several calls, enqueued one after the other as a step's are.
absl::StatusOr<double> Runner::Time(const std::function<absl::Status()>& call) {
  int64_t begin_us = 0;
  for (int i = 0; i < 2 * kRepeats; ++i) {
    if (i == kRepeats) {
      RETURN_IF_ERROR(stream_.Synchronize());
      begin_us = WaitBoard::SteadyMicroseconds();
    }
    RETURN_IF_ERROR(call());
  }
  RETURN_IF_ERROR(stream_.Synchronize());
  return 1e-6 * static_cast<double>(WaitBoard::SteadyMicroseconds() - begin_us) / kRepeats;
}

absl::Status RunRank(int rank, int ranks, Board* board) {
  SetNcclEnvironment(rank);
  const auto host = CpuStream::Create({});
  ASSIGN_OR_RETURN(const auto stream, OpenCudaStream(0, *host));
  NcclGroupOptions options;
  ASSIGN_OR_RETURN(options.id, ShareId(rank, board));
  options.name = "the check's ranks";
  options.rank = rank;
  options.size = ranks;
  options.most_bytes = kMostBytes;
  options.collectives = options.hops = true;
  ASSIGN_OR_RETURN(const auto group, OpenNcclGroup(*stream, options));
  Runner runner(*stream, *group);
  for (const int64_t count : {1, 77, 4096, 100000}) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      RETURN_IF_ERROR(runner.CheckSum(dtype, count));
    }
    RETURN_IF_ERROR(runner.CheckGather(count));
    RETURN_IF_ERROR(runner.CheckHop(count));
  }
  for (size_t i = 0; i < std::size(kSizes); ++i) {
    ASSIGN_OR_RETURN(const double seconds, runner.TimeSum(kSizes[i]));
    if (rank == 0) board->seconds[i] = seconds;
  }
  ASSIGN_OR_RETURN(const double seconds, runner.TimeHop(kSizes[0]));
  if (rank == 0) board->hop_seconds = seconds;
  return group->Health();
}

bool CheckGroup(int ranks) {
  const std::string what = Text("NCCL, %d ranks on one GPU", ranks);
  const auto memory = SharedRegion::MapAnonymous(sizeof(Board));
  if (!memory.ok()) {
    Report("collectives", what, std::string(memory.status().message()), "", Verdict::kFail);
    return false;
  }
  auto* board = new ((*memory)->data()) Board;
  const absl::Status status =
      ForkRanks(ranks, kTimeoutSeconds, [&](int rank) { return RunRank(rank, ranks, board); });
  std::string words = std::string(status.message());
  if (status.ok()) {
    words = "exact; all-reduce";
    for (size_t i = 0; i < std::size(kSizes); ++i) {
      words +=
          Text(" %lldK %.0f", static_cast<long long>(kSizes[i] >> 10), board->seconds[i] * 1e6);
    }
    words += Text(", hop 8K %.0f us", board->hop_seconds * 1e6);
  }
  Report("collectives", what, words, "exact", status.ok() ? Verdict::kPass : Verdict::kFail);
  return status.ok();
}

}  // namespace

bool CheckCollectives(bool tiny) {
  bool right = CheckGroup(2);
  if (!tiny) right &= CheckGroup(4);
  return right;
}

}  // namespace pergola
