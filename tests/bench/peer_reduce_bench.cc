// Time of a sum over the GPUs of a node with the residual and an RMS norm behind it, for messages
// of 4 KiB to 4 MiB of bf16: through peer memory in one shot and in two, and through NCCL with the
// norm as a second launch, each recorded and replayed as in a decode step. A thread per GPU; the
// time is the slowest rank's. Where two shots become faster than one is what peer_reduce.cu's
// kSignalBytes guesses, where NCCL becomes faster than both what --peer-sum-bytes does. `--tiny`
// runs small messages, also under the emulator, where times mean nothing.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_handle.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/nccl_group.h"
#include "kernels/cuda/peer_reduce.h"
#include "tests/kernels/cuda/peer_ranks.h"

namespace pergola {
namespace {

constexpr int kLaunches = 20;  // in a recording

enum class Way : uint8_t { kOneShot, kTwoShots, kNccl };
constexpr Way kWays[] = {Way::kOneShot, Way::kTwoShots, Way::kNccl};

struct Sizes {
  int64_t largest_bytes;
  int64_t hidden;
  int repeats;
};

// What all ranks know.
struct Group {
  Group(int count, const Sizes& all) : size(count), sizes(all), gather(count) {}
  const int size;
  const Sizes sizes;
  BytesGather gather;
  std::string nccl_id;  // empty: there is no NCCL
};

absl::Status Gather(Group* group, int rank, const void* in, int64_t bytes, void* out) {
  return group->gather.Gather(rank, in, bytes, out);
}

void Check(const absl::Status& status) {
  PERGOLA_CHECK_MSG(status.ok(), std::string(status.message()));
}

class BenchRank {
 public:
  BenchRank(Group* group, int rank) : group_(group), rank_(rank) {
    host_ = CpuStream::Create(StreamOptions());
    auto stream = OpenCudaStream(rank, *host_);
    Check(stream.status());
    stream_ = std::move(stream).value();
    PeerOptions options;
    options.rank = rank;
    options.size = group->size;
    options.most_bytes = group->sizes.largest_bytes;
    options.gather = [=](const void* in, int64_t bytes, void* out) {
      return Gather(group, rank, in, bytes, out);
    };
    auto memory = PeerMemory::Create(options);
    if (memory.ok()) memory_ = std::move(memory).value();
    if (rank == 0 && !memory_) {
      std::printf("no peer memory: %s\n", std::string(memory.status().message()).c_str());
    }
    OpenNccl();
  }

  void Run() {
    if (rank_ == 0) std::printf("%12s %12s %12s %12s\n", "bytes", "one shot", "two shots", "NCCL");
    for (int64_t bytes = 4 << 10; bytes <= group_->sizes.largest_bytes; bytes *= 2) {
      if (rank_ == 0) std::printf("%12lld", static_cast<long long>(bytes));
      for (const Way way : kWays) {
        const double seconds = Measure(way, bytes);
        if (rank_ != 0) continue;
        if (seconds > 0) {
          std::printf(" %9.2f us", seconds * 1e6);
        } else {
          std::printf(" %12s", "-");
        }
      }
      if (rank_ == 0) std::printf("\n");
    }
    group_->gather.Meet();
  }

 private:
  void OpenNccl() {
    if (group_->nccl_id.empty()) return;
    NcclGroupOptions options;
    options.id = group_->nccl_id;
    options.name = "the GPUs";
    options.rank = rank_;
    options.size = group_->size;
    options.most_bytes = group_->sizes.largest_bytes;
    options.collectives = true;
    auto nccl = OpenNcclGroup(*stream_, options);
    Check(nccl.status());
    nccl_ = std::move(nccl).value();
  }

  void Enqueue(Way way, const RmsNormArgs& args) {
    if (way == Way::kNccl) {
      Check(nccl_->AllReduce(args.residual));
      RmsNorm(*stream_, args);
      return;
    }
    RunOnCuda(*stream_, "sum", [&](const CudaContext& context) {
      PeerSumNormCuda(context, memory_->space(), args,
                      way == Way::kOneShot ? PeerShots::kOne : PeerShots::kTwo);
    });
  }

  // Median of the repeats' times per launch, of the slowest rank; 0 where there is no such way.
  double Measure(Way way, int64_t bytes) {
    if (way == Way::kNccl ? nccl_ == nullptr : memory_ == nullptr) return 0;
    const int64_t values = bytes / 2, hidden = std::min(group_->sizes.hidden, values);
    DeviceBuffer x(*stream_, 2 * bytes), part(*stream_, bytes), y(*stream_, bytes);
    DeviceBuffer weight(*stream_, hidden * 4);
    RmsNormArgs args;
    args.x = Tensor(x.data(), DType::kF32, {values / hidden, hidden});
    args.residual = Tensor(part.data(), DType::kBF16, {values / hidden, hidden});
    args.weight = reinterpret_cast<const float*>(weight.data());
    args.epsilon = 1e-5F;
    args.y = Tensor(y.data(), DType::kBF16, {values / hidden, hidden});
    Enqueue(way, args);
    Check(stream_->Synchronize());
    stream_->BeginRecording();
    for (int i = 0; i < kLaunches; ++i) Enqueue(way, args);
    const auto recording = stream_->EndRecording();
    Check(recording.status());
    std::vector<double> times;
    for (int i = 0; i < group_->sizes.repeats + 2; ++i) {  // the first two warm up
      group_->gather.Meet();
      const auto begin = std::chrono::steady_clock::now();
      stream_->Replay(**recording);
      Check(stream_->Synchronize());
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      std::vector<double> all(static_cast<size_t>(group_->size));
      const double own = took.count();
      Check(Gather(group_, rank_, &own, sizeof(own), all.data()));
      if (i >= 2) times.push_back(*std::max_element(all.begin(), all.end()));
    }
    if (memory_) Check(memory_->status());
    std::sort(times.begin(), times.end());
    return std::max(times[times.size() / 2] / kLaunches, 1e-9);
  }

  Group* const group_;
  const int rank_;
  std::unique_ptr<CpuStream> host_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<PeerMemory> memory_;
  std::unique_ptr<DeviceGroup> nccl_;
};

int Main(bool tiny) {
  const int devices = std::min(CudaDeviceCount(), kMostPeers);
  if (devices < 2) {
    std::printf("skipped: %d CUDA devices; a sum over GPUs needs two\n", devices);
    return 0;
  }
  Group group(devices, tiny ? Sizes{8 << 10, 1024, 1} : Sizes{4 << 20, 8192, 30});
  const auto id = NewNcclId();
  if (id.ok()) {
    group.nccl_id = *id;
  } else {
    std::printf("no NCCL: %s\n", std::string(id.status().message()).c_str());
  }
  std::printf("%d GPUs, bf16, rows of %lld\n", devices, static_cast<long long>(group.sizes.hidden));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < devices; ++rank) {
    threads.emplace_back([&group, rank] {
      BenchRank bench(&group, rank);
      bench.Run();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  return pergola::Main(argc > 1 && std::strcmp(argv[1], "--tiny") == 0);
}
