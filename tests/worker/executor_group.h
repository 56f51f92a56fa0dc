// A group of ranks as threads of one test, stage after stage, with the plainest communicator that
// can be right.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "gtest/gtest.h"
#include "kernels/cpu_stream.h"
#include "kernels/cuda/cuda_stream.h"
#include "tests/worker/thread_ranks.h"
#include "worker/comm/device_links.h"
#include "worker/step/stage_executor.h"

namespace pergola {

// Where the ranks of a stage meet.
struct Meeting {
  Mutex mutex;
  CondVar changed;
  int arrived = 0;
  uint64_t generation = 0;
  std::vector<const void*> parts;
};

class PlainCommunicator : public StageCommunicator {
 public:
  PlainCommunicator(std::shared_ptr<Meeting> meeting, int rank, int size)
      : meeting_(std::move(meeting)), rank_(rank), size_(size) {
    meeting_->parts.resize(size);
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::Status AllReduce(float* data, int64_t count) override {
    Post(data);
    std::vector<float> sum(count);
    for (int r = 0; r < size_; ++r) {
      const auto* part = static_cast<const float*>(meeting_->parts[r]);
      for (int64_t i = 0; i < count; ++i) sum[i] = r == 0 ? part[i] : sum[i] + part[i];
    }
    Wait();
    std::copy(sum.begin(), sum.end(), data);
    return absl::OkStatus();
  }
  absl::Status AllGather(const void* in, int64_t bytes, void* out) override {
    Post(in);
    std::vector<uint8_t> all(bytes * size_);
    for (int r = 0; r < size_; ++r) {
      std::memcpy(all.data() + r * bytes, meeting_->parts[r], bytes);
    }
    Wait();
    std::memcpy(out, all.data(), all.size());
    return absl::OkStatus();
  }
  absl::Status Broadcast(void* /*data*/, int64_t /*bytes*/, int /*root*/, bool /*idle*/) override {
    return absl::UnimplementedError("the executor does not broadcast");
  }
  void WatchIdleWaits(std::function<absl::Status()> /*watch*/) override {}

 private:
  void Post(const void* data) {
    {
      MutexLock lock(meeting_->mutex);
      meeting_->parts[rank_] = data;
    }
    Wait();
  }
  void Wait() {
    MutexLock lock(meeting_->mutex);
    const uint64_t generation = meeting_->generation;
    if (++meeting_->arrived == size_) {
      meeting_->arrived = 0;
      ++meeting_->generation;
      meeting_->changed.NotifyAll();
    }
    while (meeting_->generation == generation) meeting_->changed.Wait(meeting_->mutex);
  }

  const std::shared_ptr<Meeting> meeting_;  // shared with the other ranks of the stage
  const int rank_;
  const int size_;
};

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// The CPU, and a GPU where there is one.
inline std::vector<Device> Devices() {
  std::vector<Device> devices = {Device::kCpu};
  if (CudaDeviceCount() > 0) devices.push_back(Device::kCuda);
  return devices;
}

class ExecutorGroup {
 public:
  // `peer_bytes`: on a GPU, sums up to this size go through peer memory; 0: none. With kNccl each
  // rank has its own device.
  ExecutorGroup(const Checkpoint& checkpoint, int tp, int pp, const ExecutorOptions& options,
                int threads = 1, Device device = Device::kCpu, int64_t peer_bytes = 0,
                Collectives collectives = Collectives::kAuto)
      : hidden_(checkpoint.spec().hidden), tp_(tp), pp_(pp) {
    for (int stage = 0; stage < pp; ++stage) {
      auto meeting = std::make_shared<Meeting>();
      for (int tp_rank = 0; tp_rank < tp; ++tp_rank) {
        Rank rank;
        StreamOptions stream;
        stream.threads = threads;
        stream.workspace_bytes = 8 << 20;
        rank.host = CpuStream::Create(stream);
        if (device == Device::kCuda) {
          const bool own = collectives == Collectives::kNccl;
          auto gpu = OpenCudaStream(own ? stage * tp + tp_rank : 0, *rank.host);
          EXPECT_TRUE(gpu.ok()) << gpu.status();
          rank.gpu = std::move(gpu).value();
        }
        rank.communicator = std::make_unique<PlainCommunicator>(meeting, tp_rank, tp);
        ranks_.push_back(std::move(rank));
      }
    }
    if (peer_bytes > 0 || collectives == Collectives::kNccl) {
      OpenLinks(checkpoint, options, peer_bytes, collectives);
    }
    for (int world_rank = 0; world_rank < tp * pp; ++world_rank) {
      Rank& rank = ranks_[world_rank];
      Stream& where = rank.gpu != nullptr ? *rank.gpu : *rank.host;
      const auto layout = MakeLayout(checkpoint.spec(), tp, pp, world_rank);
      EXPECT_TRUE(layout.ok()) << layout.status();
      ExecutorOptions own = options;
      own.links = rank.links.get();
      auto executor =
          StageExecutor::Load(checkpoint, *layout, own, where, rank.communicator.get(), nullptr);
      EXPECT_TRUE(executor.ok()) << executor.status();
      rank.executor = std::move(executor).value();
    }
  }

  StageExecutor& executor(int stage, int tp_rank) {
    return *ranks_[stage * tp_ + tp_rank].executor;
  }
  DeviceLinks& links(int rank) { return *ranks_[rank].links; }
  StageExecutor& last() { return executor(pp_ - 1, 0); }
  // As a rank does once it is loaded.
  void Seal() {
    for (Rank& rank : ranks_) {
      rank.host->Seal();
      if (rank.gpu != nullptr) rank.gpu->Seal();
    }
  }
  Stream& stream(int rank) {
    return ranks_[rank].gpu != nullptr ? *ranks_[rank].gpu : *ranks_[rank].host;
  }
  void KeepLogits(bool keep) {
    for (Rank& rank : ranks_) rank.executor->KeepLogits(keep);
  }

  // Validates and executes on every rank; checks that the ranks of a stage agree on every bit.
  std::vector<v1::EntryResult> Execute(const v1::StepPlan& plan, const std::vector<int32_t>& ids) {
    std::vector<float> input(PlanRows(plan) * hidden_);
    std::vector<std::vector<v1::EntryResult>> results(tp_);
    for (int stage = 0; stage < pp_; ++stage) {
      std::vector<std::vector<float>> hidden(tp_, input);
      std::vector<std::thread> threads;
      for (int r = 0; r < tp_; ++r) {
        threads.emplace_back([&, r] {
          StageExecutor& rank = executor(stage, r);
          const absl::Status valid = rank.Validate(plan);
          EXPECT_TRUE(valid.ok()) << valid;
          const bool has_ids = stage == 0 || stage == pp_ - 1;
          const absl::Status status =
              rank.Execute(plan, has_ids ? absl::MakeConstSpan(ids) : absl::Span<const int32_t>(),
                           hidden[r].data(), &results[r]);
          EXPECT_TRUE(status.ok()) << status;
        });
      }
      for (std::thread& thread : threads) thread.join();
      for (int r = 1; r < tp_ && stage + 1 < pp_; ++r) {
        EXPECT_TRUE(SameBits(hidden[0], hidden[r])) << "stage " << stage << " tp_rank " << r;
      }
      input = hidden[0];
    }
    for (int r = 1; r < tp_; ++r) {
      EXPECT_EQ(results[0].size(), results[r].size());
      for (size_t e = 0; e < results[0].size(); ++e) {
        EXPECT_EQ(results[0][e].SerializeAsString(), results[r][e].SerializeAsString())
            << "entry " << e << " tp_rank " << r;
      }
    }
    return results[0];
  }

 private:
  struct Rank {
    std::unique_ptr<CpuStream> host;
    std::unique_ptr<Stream> gpu;
    std::unique_ptr<StageCommunicator> communicator;
    std::unique_ptr<DeviceLinks> links;
    std::unique_ptr<StageExecutor> executor;
  };

  void OpenLinks(const Checkpoint& checkpoint, const ExecutorOptions& executor, int64_t peer_bytes,
                 Collectives collectives) {
    ThreadGather texts(tp_ * pp_);
    OnThreads(tp_ * pp_, [&](int world_rank) {
      Rank& rank = ranks_[world_rank];
      DeviceLinksOptions options;
      options.layout = MakeLayout(checkpoint.spec(), tp_, pp_, world_rank).value();
      options.choice = collectives;
      options.most_values = executor.step_tokens * checkpoint.spec().hidden;
      options.peer_sum_bytes = peer_bytes;
      options.communicator = rank.communicator.get();
      auto links = DeviceLinks::Open(*rank.gpu, options, [&](const std::string& text) {
        return texts.Gather(world_rank, text);
      });
      ASSERT_TRUE(links.ok()) << links.status();
      rank.links = std::move(links).value();
      EXPECT_EQ(rank.links->peers() != nullptr, peer_bytes > 0);
    });
  }

  const int64_t hidden_;
  const int tp_;
  const int pp_;
  std::vector<Rank> ranks_;
};

}  // namespace pergola
