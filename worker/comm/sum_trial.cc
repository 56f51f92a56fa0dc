#include "worker/comm/sum_trial.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kernels/decoder_ops.h"
#include "worker/comm/backoff.h"
#include "worker/comm/device_reducer.h"

namespace pergola {
namespace {

constexpr int kLaunches = 10;  // between two looks at the clock
constexpr int kRepeats = 5;    // of which the median counts, after one that warms up
constexpr int64_t kRowFactor = 4;
constexpr int64_t kF32Bytes = sizeof(float);

// Small whole numbers: every order of adding them gives the same bits.
float PartOf(int rank, int64_t i) {
  return static_cast<float>((i % 7 - 3) * (rank + 1));
}
float SumOver(int ranks, int64_t i) {
  return static_cast<float>((i % 7 - 3) * ranks * (ranks + 1) / 2);
}

// How a rank fared; what the others hear of it.
enum class Verdict : int32_t { kRight, kWrongSum, kLost, kFailed };
struct Report {
  double nccl_s = 0, peers_s = 0;
  Verdict verdict = Verdict::kRight;
};

class Trial {
 public:
  Trial(const SumTrial& options, int64_t most_rows)
      : options_(options),
        stream_(options.stream),
        nccl_(stream_, &options.communicator, &options.nccl, 0, DType::kF32),
        peers_(stream_, &options.communicator, &options.nccl, 0, DType::kF32),
        most_(most_rows * options.hidden),
        weight_(stream_, options.hidden * kF32Bytes),
        x_(stream_, most_ * kF32Bytes),
        part_(stream_, most_ * kF32Bytes),
        y_(stream_, most_ * kF32Bytes),
        host_(stream_, most_ * kF32Bytes, Place::kPinned) {
    peers_.UsePeers(&options.peers);
  }

  absl::Status status() { return stream_.Synchronize(); }

  // Peer memory's sum of whole numbers, and both ways recorded. Enqueues nothing of NCCL's.
  // DATA_LOSS: the sum is wrong; UNAVAILABLE: a rank did not come.
  absl::Status Prepare(int64_t rows) {
    RETURN_IF_ERROR(CheckSum(rows));
    ASSIGN_OR_RETURN(nccl_steps_, Record(nccl_, rows));
    ASSIGN_OR_RETURN(peers_steps_, Record(peers_, rows));
    return absl::OkStatus();
  }
  // When every rank is prepared. UNAVAILABLE: a rank did not come to a sum over peer memory.
  absl::Status Measure(int64_t rows, Report* report) {
    ASSIGN_OR_RETURN(report->nccl_s, Time(nccl_, nccl_steps_.get(), rows));
    ASSIGN_OR_RETURN(report->peers_s, Time(peers_, peers_steps_.get(), rows));
    return absl::OkStatus();
  }
  // NCCL lets go of memory that a recording used with its next call at the latest.
  absl::Status End() {
    nccl_steps_.reset();
    RETURN_IF_ERROR(nccl_.AllReduce(Args(1).residual));
    return Wait();
  }

 private:
  RmsNormArgs Args(int64_t rows) const {
    const int64_t hidden = options_.hidden;
    RmsNormArgs args;
    args.x = Tensor(x_.data(), DType::kF32, {rows, hidden});
    args.residual = Tensor(part_.data(), DType::kF32, {rows, hidden});
    args.weight = reinterpret_cast<const float*>(weight_.data());
    args.epsilon = 1;
    args.y = Tensor(y_.data(), DType::kF32, {rows, hidden});
    return args;
  }

  // The stream's Synchronize, but a rank that is lost to peer memory is no error of the stream, and
  // one that NCCL has lost ends the wait.
  absl::Status Wait() {
    Backoff backoff({20'000, 10, 200});
    while (!stream_.Idle()) {
      RETURN_IF_ERROR(options_.nccl.Health());
      backoff.Pause();
    }
    RETURN_IF_ERROR(options_.peers.status());
    return stream_.Synchronize();
  }

  absl::Status Launch(DeviceReducer& reducer, int64_t rows) {
    for (int i = 0; i < kLaunches; ++i) RETURN_IF_ERROR(reducer.AllReduceNorm(Args(rows)));
    return absl::OkStatus();
  }

  absl::Status CheckSum(int64_t rows);
  // Null where the stream does not record.
  absl::StatusOr<std::unique_ptr<Recording>> Record(DeviceReducer& reducer, int64_t rows);
  // Of a launch, in seconds. Sums of sums: the values grow, their time does not.
  absl::StatusOr<double> Time(DeviceReducer& reducer, const Recording* recording, int64_t rows);

  const SumTrial& options_;
  Stream& stream_;
  DeviceReducer nccl_, peers_;
  const int64_t most_;
  DeviceBuffer weight_, x_, part_, y_, host_;
  std::unique_ptr<Recording> nccl_steps_, peers_steps_;
};

absl::Status Trial::CheckSum(int64_t rows) {
  auto* host = reinterpret_cast<float*>(host_.data());
  const int64_t values = rows * options_.hidden, bytes = values * kF32Bytes;
  std::fill_n(host, values, 0.0F);
  stream_.CopyToDevice(x_.data(), host, bytes);
  RETURN_IF_ERROR(stream_.Synchronize());
  for (int64_t i = 0; i < values; ++i) host[i] = PartOf(options_.nccl.rank(), i);
  stream_.CopyToDevice(part_.data(), host, bytes);
  RETURN_IF_ERROR(stream_.Synchronize());
  RETURN_IF_ERROR(peers_.AllReduceNorm(Args(rows)));
  RETURN_IF_ERROR(Wait());
  stream_.CopyToHost(host, x_.data(), bytes);
  RETURN_IF_ERROR(stream_.Synchronize());
  for (int64_t i = 0; i < values; ++i) {
    if (host[i] == SumOver(options_.nccl.size(), i)) continue;
    return absl::DataLossError(absl::StrCat("value ", i, " is ", host[i], " and must be ",
                                            SumOver(options_.nccl.size(), i)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Recording>> Trial::Record(DeviceReducer& reducer, int64_t rows) {
  if (!stream_.records()) return nullptr;
  stream_.BeginRecording();
  const absl::Status launched = Launch(reducer, rows);
  auto recording = stream_.EndRecording();
  RETURN_IF_ERROR(launched);
  return recording;
}

absl::StatusOr<double> Trial::Time(DeviceReducer& reducer, const Recording* recording,
                                   int64_t rows) {
  std::vector<double> times;
  for (int i = 0; i <= kRepeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (recording != nullptr) {
      stream_.Replay(*recording);
    } else {
      RETURN_IF_ERROR(Launch(reducer, rows));
    }
    RETURN_IF_ERROR(Wait());
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (i > 0) times.push_back(took.count() / kLaunches);
  }
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  return times[kRepeats / 2];
}

Verdict VerdictOf(const absl::Status& status) {
  if (status.ok()) return Verdict::kRight;
  if (absl::IsDataLoss(status)) return Verdict::kWrongSum;
  return absl::IsUnavailable(status) ? Verdict::kLost : Verdict::kFailed;
}

// What the ranks make of it together: the slowest one's times.
absl::StatusOr<SumTime> Agree(const SumTrial& trial, const absl::Status& mine, Report report) {
  report.verdict = VerdictOf(mine);
  std::vector<Report> all(static_cast<size_t>(trial.communicator.size()));
  RETURN_IF_ERROR(trial.communicator.AllGather(&report, sizeof(report), all.data()));
  if (report.verdict == Verdict::kFailed) return mine;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].verdict != Verdict::kFailed) continue;
    return absl::AbortedError(absl::StrCat("rank ", rank, " of the stage failed"));
  }
  SumTime time;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    time.nccl_s = std::max(time.nccl_s, all[rank].nccl_s);
    time.peers_s = std::max(time.peers_s, all[rank].peers_s);
    if (all[rank].verdict == Verdict::kRight) continue;
    return absl::UnavailableError(absl::StrCat(
        "rank ", rank, " of the stage: ",
        all[rank].verdict == Verdict::kLost ? "another did not come" : "its sum is wrong",
        mine.ok() ? "" : absl::StrCat(" (here: ", mine.message(), ")")));
  }
  return time;
}

}  // namespace

absl::StatusOr<std::vector<SumTime>> TrySums(const SumTrial& trial) {
  const int64_t row_bytes = trial.hidden * kF32Bytes;
  const int64_t most_rows = trial.peers.most_bytes() / row_bytes;
  std::vector<SumTime> times;
  if (most_rows == 0) return times;
  Trial ranks_part(trial, most_rows);
  // Also the first memory that cannot be had is told to the others.
  absl::Status mine = ranks_part.status();
  for (int64_t rows = 1; rows <= most_rows; rows *= kRowFactor) {
    if (mine.ok()) mine = ranks_part.Prepare(rows);
    // None goes on to NCCL alone.
    RETURN_IF_ERROR(Agree(trial, mine, Report()).status());
    Report report;
    mine = ranks_part.Measure(rows, &report);
    ASSIGN_OR_RETURN(SumTime time, Agree(trial, mine, report));
    time.bytes = rows * row_bytes;
    times.push_back(time);
  }
  RETURN_IF_ERROR(ranks_part.End());
  return times;
}

int64_t LargestFasterSum(absl::Span<const SumTime> times) {
  int64_t bytes = 0;
  for (const SumTime& time : times) {
    if (time.peers_s >= time.nccl_s) break;
    bytes = time.bytes;
  }
  return bytes;
}

}  // namespace pergola
