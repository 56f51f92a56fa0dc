// A whole group as threads of one test: the real step loops, executors and communicators, with a
// queue of plans in front and a queue of results behind. Logits of the last stage are kept.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
#include "kernels/sample.h"
#include "model/checkpoint.h"
#include "tests/worker/thread_ranks.h"
#include "worker/comm/thread_transport.h"
#include "worker/step/step_loop.h"

namespace pergola {

class ThreadGroup {
 public:
  // With kNccl each rank has its own device: there must be TP x PP.
  ThreadGroup(const std::string& path, int tp, int pp, const ExecutorOptions& options,
              Device device = Device::kCpu, Collectives collectives = Collectives::kHost)
      : tp_(tp), device_(device), collectives_(collectives), texts_(tp * pp), loaded_(tp * pp + 1) {
    auto checkpoint = Checkpoint::Open(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = std::move(checkpoint).value();
    auto mailboxes = std::make_shared<ThreadMailboxes>();
    for (int stage = 0; stage < pp; ++stage) stages_.push_back(std::make_unique<ThreadStage>(tp));
    ranks_.resize(tp * pp);
    for (int rank = 0; rank < tp * pp; ++rank) {
      ranks_[rank].thread = std::thread([this, rank, pp, options, mailboxes] {
        AddRank(rank, pp, options, mailboxes);
        loaded_.Gather(rank, "");
        const absl::Status status = ranks_[rank].loop->Run();
        EXPECT_TRUE(status.ok()) << status;
      });
    }
    loaded_.Gather(tp * pp, "");
  }

  ~ThreadGroup() {
    plans_.End();
    for (Rank& rank : ranks_) rank.thread.join();
  }

  const ModelSpec& spec() const { return checkpoint_->spec(); }
  // The rank that keeps logits; look at it only while no plan is under way.
  StageExecutor& last_stage() { return *ranks_[ranks_.size() - tp_].executor; }
  void Submit(v1::StepPlan plan) { plans_.Push(std::move(plan)); }
  // The next result, in plan order.
  v1::StepResult Wait() { return results_.Pop(); }

 private:
  class Plans : public PlanSource {
   public:
    void Push(v1::StepPlan plan) {
      MutexLock lock(mutex_);
      waiting_.push_back(std::move(plan));
      changed_.NotifyAll();
    }
    void End() {
      MutexLock lock(mutex_);
      ended_ = true;
      changed_.NotifyAll();
    }
    absl::StatusOr<Next> Take(bool wait, v1::StepPlan* plan) override {
      MutexLock lock(mutex_);
      while (wait && waiting_.empty() && !ended_) changed_.Wait(mutex_);
      if (waiting_.empty()) return ended_ ? Next::kEnd : Next::kNone;
      *plan = std::move(waiting_.front());
      waiting_.pop_front();
      return Next::kPlan;
    }

   private:
    Mutex mutex_;
    CondVar changed_;
    std::deque<v1::StepPlan> waiting_ GUARDED_BY(mutex_);
    bool ended_ GUARDED_BY(mutex_) = false;
  };

  class Results : public ResultSink {
   public:
    void Push(v1::StepResult result) override {
      MutexLock lock(mutex_);
      waiting_.push_back(std::move(result));
      changed_.NotifyAll();
    }
    v1::StepResult Pop() {
      MutexLock lock(mutex_);
      while (waiting_.empty()) changed_.Wait(mutex_);
      v1::StepResult result = std::move(waiting_.front());
      waiting_.pop_front();
      return result;
    }

   private:
    Mutex mutex_;
    CondVar changed_;
    std::deque<v1::StepResult> waiting_ GUARDED_BY(mutex_);
  };

  struct Rank {
    std::unique_ptr<CpuStream> host;
    std::unique_ptr<Stream> gpu;
    std::unique_ptr<DeviceLinks> links;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<StageExecutor> executor;
    std::unique_ptr<StepLoop> loop;
    std::thread thread;
  };

  void AddRank(int world_rank, int pp, ExecutorOptions options,
               const std::shared_ptr<ThreadMailboxes>& mailboxes) {
    const auto layout = MakeLayout(spec(), tp_, pp, world_rank);
    EXPECT_TRUE(layout.ok()) << layout.status();
    ThreadStage& stage = *stages_[layout->stage];
    Rank& rank = ranks_[world_rank];
    StreamOptions stream;
    stream.workspace_bytes = SampleWorkspaceBytes(spec().vocabulary, spec().context_length);
    rank.host = CpuStream::Create(stream);
    if (device_ == Device::kCuda) {
      const bool own = collectives_ == Collectives::kNccl;
      auto gpu = OpenCudaStream(own ? world_rank : 0, *rank.host);
      EXPECT_TRUE(gpu.ok()) << gpu.status();
      rank.gpu = std::move(gpu).value();
    }
    Stream& where = rank.gpu != nullptr ? *rank.gpu : *rank.host;
    rank.transport =
        std::make_unique<ThreadTransport>(mailboxes, world_rank, &stage.board(layout->tp_rank));
    DeviceLinksOptions links;
    links.layout = *layout;
    links.choice = collectives_;
    links.most_values = options.step_tokens * spec().hidden;
    links.board = &stage.board(layout->tp_rank);
    auto opened = DeviceLinks::Open(
        where, links, [&](const std::string& text) { return texts_.Gather(world_rank, text); });
    EXPECT_TRUE(opened.ok()) << opened.status();
    rank.links = std::move(opened).value();
    options.links = rank.links.get();
    auto executor = StageExecutor::Load(*checkpoint_, *layout, options, where,
                                        &stage.at(layout->tp_rank), nullptr);
    EXPECT_TRUE(executor.ok()) << executor.status();
    rank.executor = std::move(executor).value();
    rank.executor->KeepLogits(true);
    StepLoopParts parts;
    parts.plans = world_rank == 0 ? &plans_ : nullptr;
    parts.results = layout->last_stage() && layout->leader() ? &results_ : nullptr;
    parts.communicator = &stage.at(layout->tp_rank);
    parts.transport = rank.transport.get();
    parts.executor = rank.executor.get();
    parts.board = &stage.board(layout->tp_rank);
    StepLoopOptions loop;
    loop.layout = *layout;
    loop.hidden = spec().hidden;
    loop.step_tokens = options.step_tokens;
    loop.now_us = WaitBoard::SteadyMicroseconds;
    rank.loop = std::make_unique<StepLoop>(loop, parts);
  }

  const int tp_;
  const Device device_;
  const Collectives collectives_;
  ThreadGather texts_;
  ThreadGather loaded_;
  std::unique_ptr<Checkpoint> checkpoint_;
  Plans plans_;
  Results results_;
  std::vector<std::unique_ptr<ThreadStage>> stages_;
  std::vector<Rank> ranks_;
};

}  // namespace pergola
