// The engine with its thread, against a group that answers from a thread of its own.
#include "coordinator/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <future>
#include <random>
#include <thread>

#include "base/mutex.h"
#include "nlohmann/json.hpp"
#include "tests/engine/fixtures.h"

namespace pergola {
namespace {

using sim::MakeHello;
using testing::HasSubstr;

// A group of one process: a thread takes plans and answers them.
class ThreadGroup final : public GroupLink {
 public:
  ThreadGroup(v1::Hello hello, Engine* engine) : hello_(std::move(hello)), engine_(engine) {
    thread_ = std::thread([this] { Run(); });
  }
  ~ThreadGroup() override {
    Close(absl::OkStatus());
    thread_.join();
  }

  void Welcome(uint64_t epoch) override {
    MutexLock lock(mutex_);
    model_ = std::make_unique<sim::ModelGroup>(hello_, epoch);
  }
  void Send(std::shared_ptr<const v1::StepPlan> plan) override {
    MutexLock lock(mutex_);
    plans_.push_back(std::move(plan));
    wake_.NotifyOne();
  }
  void Close(const absl::Status&) override {
    MutexLock lock(mutex_);
    closed_ = true;
    wake_.NotifyOne();
  }
  void Pause(bool paused) {
    MutexLock lock(mutex_);
    paused_ = paused;
    wake_.NotifyOne();
  }
  std::string error() {
    MutexLock lock(mutex_);
    return model_ == nullptr ? "" : model_->error();
  }

 private:
  void Run() {
    for (;;) {
      v1::StepResult result;
      {
        MutexLock lock(mutex_);
        while ((plans_.empty() || paused_) && !closed_) wake_.Wait(mutex_);
        if (closed_) return;
        result = model_->Execute(*plans_.front());
        plans_.pop_front();
      }
      for (uint32_t stage = 0; stage < hello_.layout().pipeline_parallel(); ++stage) {
        v1::StageTime& time = *result.add_stages();
        time.set_start_us(stage);
        time.set_compute_us(1);
      }
      engine_->GroupResult(hello_.group(), std::move(result));
    }
  }

  const v1::Hello hello_;
  Engine* const engine_;
  Mutex mutex_;
  CondVar wake_;
  std::unique_ptr<sim::ModelGroup> model_;
  std::deque<std::shared_ptr<const v1::StepPlan>> plans_;
  bool paused_ = false;
  bool closed_ = false;
  std::thread thread_;
};

// A door call that waits for its end.
struct Call {
  Mutex mutex;
  std::vector<int32_t> ids;
  std::shared_ptr<Mailbox> mailbox;
  std::promise<absl::Status> end;

  // The mailbox's notifications come on the engine thread.
  void Drain() {
    MutexLock lock(mutex);
    Mailbox::Delivery delivery = mailbox->Take();
    ids.insert(ids.end(), delivery.ids.begin(), delivery.ids.end());
    if (delivery.ended) end.set_value(delivery.status);
  }
};

class EngineTest : public testing::Test {
 protected:
  static EngineOptions Options() {
    EngineOptions options;
    options.text_hash = "t1";
    options.start_time_us = 1;
    options.probe_interval_us = 5000;
    return options;
  }

  static std::shared_ptr<ThreadGroup> Attach(Engine& engine, const v1::Hello& hello) {
    auto group = std::make_shared<ThreadGroup>(hello, &engine);
    engine.GroupAttached(1, hello, group);
    engine.ResultsConnected(hello.group(), 2);
    return group;
  }

  // The engine thread may still be in a notification when the test has seen the end: it holds the
  // call meanwhile.
  static std::shared_ptr<Call> MakeCall(SequenceRequest* request) {
    auto call = std::make_shared<Call>();
    call->mailbox = std::make_shared<Mailbox>([weak = std::weak_ptr<Call>(call)] {
      if (auto strong = weak.lock()) strong->Drain();
    });
    request->mailbox = call->mailbox;
    return call;
  }

  static v1::StatusResponse StatusOf(Engine& engine) {
    std::promise<v1::StatusResponse> promise;
    engine.Status([&](v1::StatusResponse status) { promise.set_value(std::move(status)); });
    return promise.get_future().get();
  }
};

TEST_F(EngineTest, StreamsWhatTheModelSays) {
  Engine engine(Options());
  auto group = Attach(engine, MakeHello("g", 1));
  SequenceRequest request = MakeRequest(20, 40);
  request.seed = 3;
  const std::vector<int32_t> expected = sim::ExpectedIds(request.prompt_ids, 3, 0, 40, 64);
  auto call = MakeCall(&request);
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  EXPECT_TRUE(call->end.get_future().get().ok());
  EXPECT_EQ(call->ids, expected);
  EXPECT_EQ(group->error(), "");
  engine.Stop();
}

TEST_F(EngineTest, ServesManyThreadsThatSubmitAndCancel) {
  Engine engine(Options());
  auto group = Attach(engine, MakeHello("g", 2));
  constexpr int kThreads = 4;
  constexpr int kCalls = 50;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&engine, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int c = 0; c < kCalls; ++c) {
        SequenceRequest request = MakeRequest(1 + random() % 30, 1 + random() % 30);
        request.seed = random();
        const std::vector<int32_t> expected =
            sim::ExpectedIds(request.prompt_ids, request.seed, 0, request.max_new_tokens, 64);
        auto call = MakeCall(&request);
        const absl::StatusOr<SequenceId> id = engine.Submit(std::move(request));
        ASSERT_TRUE(id.ok());
        if (c % 3 == 0) engine.Cancel(*id, absl::CancelledError("test"));
        const absl::Status status = call->end.get_future().get();
        if (status.ok()) {
          EXPECT_EQ(call->ids, expected);
        } else if (status.code() == absl::StatusCode::kInternal) {
          EXPECT_EQ(expected.back(), sim::kNanId);
        } else {
          EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(group->error(), "");
  const v1::StatusResponse status = StatusOf(engine);
  EXPECT_EQ(status.requests_total(), kThreads * kCalls);
  EXPECT_EQ(status.groups(0).blocks_used(), 0U);
  engine.Stop();
}

TEST_F(EngineTest, RefusesSynchronouslyWhenTheQueueIsFull) {
  EngineOptions options = Options();
  options.max_queued_sequences = 3;
  Engine engine(options);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(engine.Submit(MakeRequest(1, 1)).ok());
  const absl::Status full = engine.Submit(MakeRequest(1, 1)).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("3 of 3"));
}

TEST_F(EngineTest, RefusesWhenTheBytesOfPromptsAreTooMany) {
  EngineOptions options = Options();
  options.max_queued_bytes = 100;
  Engine engine(options);
  ASSERT_TRUE(engine.Submit(MakeRequest(20, 1)).ok());
  const absl::Status full = engine.Submit(MakeRequest(6, 1)).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("100"));
  EXPECT_TRUE(engine.Submit(MakeRequest(5, 1)).ok());
}

TEST_F(EngineTest, ACancelledSequenceLeavesItsPlaceInTheQueue) {
  EngineOptions options = Options();
  options.max_queued_sequences = 1;
  Engine engine(options);
  const absl::StatusOr<SequenceId> id = engine.Submit(MakeRequest(1, 1));
  ASSERT_TRUE(id.ok());
  engine.Cancel(*id, absl::CancelledError("test"));
  StatusOf(engine);
  StatusOf(engine);  // the first answer may come before the counters are published
  EXPECT_TRUE(engine.Submit(MakeRequest(1, 1)).ok());
}

TEST_F(EngineTest, TellsServingAndLimits) {
  Engine engine(Options());
  std::promise<void> up;
  engine.OnServingChanged([&, told = false](bool serving) mutable {
    if (serving && !told) {
      told = true;
      up.set_value();
    }
  });
  EXPECT_FALSE(engine.limits().attached);
  auto group = Attach(engine, MakeHello("g", 1));
  up.get_future().get();
  EXPECT_TRUE(engine.limits().attached);
  EXPECT_EQ(engine.limits().numerics_id, "n1");
  EXPECT_TRUE(StatusOf(engine).serving());
  engine.Stop();
}

TEST_F(EngineTest, DrainRefusesNewWorkAndAnswersWhenNothingRuns) {
  Engine engine(Options());
  auto group = Attach(engine, MakeHello("g", 1));
  SequenceRequest request = MakeRequest(20, 40);
  auto call = MakeCall(&request);
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  std::promise<v1::DrainResponse> drained;
  engine.Drain(60'000'000, [&](v1::DrainResponse response) { drained.set_value(response); });
  EXPECT_TRUE(engine.draining());
  EXPECT_EQ(engine.Submit(MakeRequest(1, 1)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(call->end.get_future().get().ok());
  EXPECT_EQ(drained.get_future().get().finished(), 1U);
  engine.Stop();
}

TEST_F(EngineTest, StopEndsEverySequenceAndAnswersEveryCall) {
  Engine engine(Options());
  SequenceRequest request = MakeRequest(20, 40);
  auto call = MakeCall(&request);
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  engine.Stop();
  engine.Stop();
  EXPECT_EQ(call->end.get_future().get().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine.Submit(MakeRequest(1, 1)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(StatusOf(engine).draining());
  std::promise<v1::DrainResponse> drained;
  engine.Drain(0, [&](v1::DrainResponse response) { drained.set_value(response); });
  drained.get_future().get();
}

TEST_F(EngineTest, DeadlinesPassWithoutAnyOtherEvent) {
  Engine engine(Options());
  SequenceRequest request = MakeRequest(20, 40);
  request.deadline = SteadyNowUs() + 20'000;
  auto call = MakeCall(&request);
  ASSERT_TRUE(engine.Submit(std::move(request)).ok());
  EXPECT_EQ(call->end.get_future().get().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(EngineTest, WritesATraceThatIsValidJson) {
  const std::string path = testing::TempDir() + "/engine_trace.json";
  {
    Engine engine(Options(), path);
    auto group = Attach(engine, MakeHello("quoted \" \xFF", 2));
    SequenceRequest request = MakeRequest(20, 10);
    auto call = MakeCall(&request);
    ASSERT_TRUE(engine.Submit(std::move(request)).ok());
    EXPECT_TRUE(call->end.get_future().get().ok());
    engine.Stop();
  }
  std::ifstream file(path);
  const nlohmann::json trace = nlohmann::json::parse(file, nullptr, false);
  ASSERT_TRUE(trace.is_array());
  int plans = 0;
  int steps = 0;
  for (const nlohmann::json& event : trace) {
    if (event["ph"] != "X") continue;
    (event["tid"] == 0 ? plans : steps) += 1;
  }
  EXPECT_GE(plans, 10);
  EXPECT_EQ(steps, 2 * plans);
  std::remove(path.c_str());
}

TEST_F(EngineTest, AnUnwritableTraceDoesNotStopTheEngine) {
  Engine engine(Options(), "/nonexistent/folder/trace.json");
  EXPECT_FALSE(StatusOf(engine).serving());
}

TEST_F(EngineTest, SurvivesAFloodOfResultsOfAHostilePeer) {
  Engine engine(Options());
  auto group = Attach(engine, MakeHello("g", 1));
  v1::StepResult nonsense;
  nonsense.set_plan_id(12345);
  for (int i = 0; i < 50'000; ++i) engine.GroupResult("g", nonsense);
  EXPECT_EQ(StatusOf(engine).groups_size(), 1);
  engine.Stop();
}

}  // namespace
}  // namespace pergola
