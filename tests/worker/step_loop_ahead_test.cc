// The step loop before an executor that runs ahead: what begins when, and that results, errors and
// times are those of plans done one after the other.
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/decoder_ops.h"
#include "tests/worker/thread_ranks.h"
#include "worker/step/step_loop.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Entry e of plan p samples 100 p + e.
class AheadExecutor : public StageExecutor {
 public:
  const ExecutorInfo& info() const override { return info_; }
  void LimitBlocks(int64_t) override {}
  absl::Status Validate(const v1::StepPlan& plan) const override {
    if (plan.copies().empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("copies has 1 block; the limit is 0");
  }
  absl::Status Begin(const v1::StepPlan& plan, absl::Span<const int32_t> ids, float*) override {
    EXPECT_LT(begun_.size(), 2U);
    std::string call = absl::StrCat("begin ", plan.plan_id());
    for (const int32_t id : ids) {
      call += IsTokenOfEntry(id) ? absl::StrCat(" entry", TokenOfEntry(id)) : absl::StrCat(" ", id);
    }
    calls.push_back(call);
    if (plan.plan_id() == fail_begin) return absl::InternalError("the device is gone");
    begun_.push_back(&plan);
    polls_ = 0;
    return absl::OkStatus();
  }
  absl::Status Finish(std::vector<v1::EntryResult>* results) override {
    const v1::StepPlan& plan = *begun_.front();
    begun_.pop_front();
    calls.push_back(absl::StrCat("finish ", plan.plan_id()));
    if (plan.plan_id() == fail_finish) return absl::InternalError("the device is gone");
    for (int e = 0; e < plan.entries_size(); ++e) {
      v1::EntryResult result;
      if (!plan.entries(e).logits_at().empty()) {
        result.add_ids(static_cast<int32_t>(100 * plan.plan_id()) + e);
      }
      results->push_back(result);
    }
    return absl::OkStatus();
  }
  bool RunsAhead() const override { return true; }
  bool MayBegin(const v1::StepPlan& next) const override { return next.plan_id() != must_wait; }
  // The device takes a while.
  absl::StatusOr<bool> Ready() override { return ++polls_ > quick; }
  int64_t repeated_passes() const override { return repeated; }
  bool hops_on_device() const override { return false; }
  int64_t recordings() const override { return 0; }
  void ForgetSlots() override {
    EXPECT_TRUE(begun_.empty());
    calls.push_back("forget");
  }
  void KeepLogits(bool) override {}
  absl::Span<const float> Logits(int64_t) const override { return {}; }

  std::vector<std::string> calls;
  uint64_t must_wait = 0, fail_begin = 0, fail_finish = 0;
  int quick = 5;  // looks until the device is done
  int64_t repeated = 0;

 private:
  std::deque<const v1::StepPlan*> begun_;
  int polls_ = 0;
  ExecutorInfo info_;
};

// Gives plans as it is told: at once, or only to a loop that has nothing else to do.
class Script : public PlanSource, public ResultSink {
 public:
  void Add(v1::StepPlan plan, bool late = false) { plans_.emplace_back(std::move(plan), late); }
  absl::StatusOr<Next> Take(bool wait, v1::StepPlan* plan) override {
    if (plans_.empty()) {
      if (quiet-- > 0) return Next::kNone;
      if (!end.ok()) return end;
      return Next::kEnd;
    }
    if (plans_.front().second && !wait) return Next::kNone;
    *plan = std::move(plans_.front().first);
    plans_.pop_front();
    return Next::kPlan;
  }
  void Push(v1::StepResult result) override { results.push_back(std::move(result)); }

  absl::Status end;
  int quiet = 0;  // looks that find nothing before the end
  std::vector<v1::StepResult> results;

 private:
  std::deque<std::pair<v1::StepPlan, bool>> plans_;
};

class StepLoopAheadTest : public testing::Test {
 protected:
  absl::Status Run() {
    StepLoopOptions options;
    options.hidden = 4;
    options.step_tokens = 16;
    options.now_us = [this] { return now_us_ += 10; };
    StepLoopParts parts;
    parts.plans = &script_;
    parts.results = &script_;
    parts.communicator = &stage_.at(0);
    parts.executor = &executor_;
    parts.board = &stage_.board(0);
    StepLoop loop(options, parts);
    const absl::Status status = loop.Run();
    plan_id_ = loop.plan_id();
    Wait wait;
    EXPECT_FALSE(stage_.board(0).Read(&wait)) << wait.operation;
    return status;
  }
  std::vector<uint64_t> Answered() const {
    std::vector<uint64_t> ids;
    for (const v1::StepResult& result : script_.results) ids.push_back(result.plan_id());
    return ids;
  }

  ThreadStage stage_{1};
  AheadExecutor executor_;
  Script script_;
  int64_t now_us_ = 0;
  uint64_t plan_id_ = 0;
};

// One entry that goes on with entry `entry` of plan `from`, or with id 7.
v1::StepPlan Plan(uint64_t plan_id, uint64_t from = 0, uint32_t entry = 0, uint64_t epoch = 1) {
  v1::StepPlan plan;
  plan.set_plan_id(plan_id);
  plan.set_epoch(epoch);
  v1::Entry* added = plan.add_entries();
  added->add_logits_at(0);
  if (from == 0) {
    added->add_ids(7);
  } else {
    added->mutable_from()->set_plan_id(from);
    added->mutable_from()->set_entry(entry);
  }
  return plan;
}

TEST_F(StepLoopAheadTest, APlanBeginsBeforeTheOneBeforeIsFinished) {
  for (uint64_t id = 1; id <= 4; ++id) script_.Add(Plan(id, id - 1));
  EXPECT_TRUE(Run().ok());
  EXPECT_THAT(executor_.calls,
              ElementsAre("forget", "begin 1 7", "begin 2 entry0", "finish 1", "begin 3 entry0",
                          "finish 2", "begin 4 entry0", "finish 3", "finish 4"));
  EXPECT_THAT(Answered(), ElementsAre(1, 2, 3, 4));
}

TEST_F(StepLoopAheadTest, WithoutANextPlanTheDeviceIsWaitedFor) {
  script_.Add(Plan(1));
  script_.Add(Plan(2, 1), /*late=*/true);
  script_.Add(Plan(3, 1));
  EXPECT_TRUE(Run().ok());
  EXPECT_THAT(executor_.calls, ElementsAre("forget", "begin 1 7", "finish 1", "begin 2 100",
                                           "begin 3 100", "finish 2", "finish 3"));
}

TEST_F(StepLoopAheadTest, APlanThatMustWaitFindsTheIdsOfTheOneBefore) {
  for (uint64_t id = 1; id <= 3; ++id) script_.Add(Plan(id, id - 1));
  executor_.must_wait = 2;
  EXPECT_TRUE(Run().ok());
  EXPECT_THAT(executor_.calls, ElementsAre("forget", "begin 1 7", "finish 1", "begin 2 100",
                                           "begin 3 entry0", "finish 2", "finish 3"));
}

TEST_F(StepLoopAheadTest, ARefusedPlanIsRefusedWhenTheOneBeforeIsAnswered) {
  v1::StepPlan bad = Plan(2, 1);
  bad.add_copies();
  script_.Add(Plan(1));
  script_.Add(bad);
  EXPECT_EQ(Run().message(), "plan 2: copies has 1 block; the limit is 0");
  EXPECT_THAT(Answered(), ElementsAre(1));
  EXPECT_EQ(plan_id_, 2U);
}

TEST_F(StepLoopAheadTest, APlanOutOfOrderIsRefusedWhenTheOneBeforeIsAnswered) {
  script_.Add(Plan(1));
  script_.Add(Plan(3));
  EXPECT_THAT(std::string(Run().message()), HasSubstr("plan_id is 3; expected 2 in epoch 1"));
  EXPECT_THAT(Answered(), ElementsAre(1));
  EXPECT_EQ(plan_id_, 1U);
}

TEST_F(StepLoopAheadTest, ReferencesToAPlanUnderWayAreRefusedInTheSameWords) {
  script_.Add(Plan(1));
  script_.Add(Plan(2, 1, 4));
  EXPECT_EQ(Run().message(), "plan 2: from.entry is 4; plan 1 had 1 entries");
  EXPECT_THAT(Answered(), ElementsAre(1));
  v1::StepPlan silent = Plan(1, 0, 0, 2);
  silent.mutable_entries(0)->clear_logits_at();
  script_.Add(silent);
  script_.Add(Plan(2, 1, 0, 2));
  EXPECT_THAT(std::string(Run().message()), HasSubstr("that entry of plan 1 sampled no token"));
  script_.Add(Plan(1));
  script_.Add(Plan(2, 2));
  EXPECT_THAT(std::string(Run().message()), HasSubstr("it must be an earlier plan, 1 to 1"));
}

TEST_F(StepLoopAheadTest, ANewEpochFindsEverythingFinished) {
  script_.Add(Plan(1, 0, 0, 3));
  script_.Add(Plan(1, 0, 0, 8));
  script_.Add(Plan(2, 0, 0, 3));  // of the old one: dropped
  script_.Add(Plan(2, 1, 0, 8));
  EXPECT_TRUE(Run().ok());
  EXPECT_THAT(executor_.calls, ElementsAre("forget", "begin 1 7", "finish 1", "forget", "begin 1 7",
                                           "begin 2 entry0", "finish 1", "finish 2"));
  ASSERT_EQ(script_.results.size(), 3U);
  EXPECT_EQ(script_.results[0].epoch(), 3U);
  EXPECT_EQ(script_.results[1].epoch(), 8U);
}

TEST_F(StepLoopAheadTest, TheSourcesErrorComesWhenAllIsAnswered) {
  script_.Add(Plan(1));
  script_.Add(Plan(2, 1));
  script_.quiet = 3;
  script_.end = absl::DeadlineExceededError("no coordinator for 5 ms");
  EXPECT_EQ(Run().message(), "no coordinator for 5 ms");
  EXPECT_THAT(Answered(), ElementsAre(1, 2));
}

TEST_F(StepLoopAheadTest, ADeviceThatFailsNamesTheOldestPlan) {
  for (uint64_t id = 1; id <= 4; ++id) script_.Add(Plan(id, id - 1));
  executor_.fail_finish = 2;
  EXPECT_EQ(Run().message(), "plan 2: the device is gone");
  EXPECT_THAT(Answered(), ElementsAre(1));
  EXPECT_EQ(plan_id_, 2U);
  EXPECT_EQ(executor_.calls.back(), "finish 2");
}

TEST_F(StepLoopAheadTest, APlanThatCannotBeginLeavesTheOneBeforeItsAnswer) {
  for (uint64_t id = 1; id <= 2; ++id) script_.Add(Plan(id, id - 1));
  executor_.fail_begin = 2;
  EXPECT_EQ(Run().message(), "plan 2: the device is gone");
  EXPECT_THAT(Answered(), ElementsAre(1));
  EXPECT_EQ(plan_id_, 2U);
}

// The clock moves by 10 at every look: whatever it shows, no moment belongs to two steps.
TEST_F(StepLoopAheadTest, TimesOfStepsDoNotOverlap) {
  for (uint64_t id = 1; id <= 6; ++id) script_.Add(Plan(id, id - 1));
  EXPECT_TRUE(Run().ok());
  int64_t computed_us = 0;
  for (const v1::StepResult& result : script_.results) {
    ASSERT_EQ(result.stages_size(), 1);
    computed_us += result.stages(0).compute_us();
  }
  EXPECT_LE(computed_us, now_us_);
  // The second was received and begun while the first computed, and waited for its turn.
  EXPECT_GT(script_.results[1].stages(0).start_us(), script_.results[0].stages(0).start_us());
}

TEST_F(StepLoopAheadTest, RepeatedPassesAreToldOnce) {
  executor_.repeated = 3;
  for (uint64_t id = 1; id <= 2; ++id) script_.Add(Plan(id, id - 1));
  EXPECT_TRUE(Run().ok());
  ASSERT_EQ(script_.results.size(), 2U);
  EXPECT_EQ(script_.results[0].repeated_passes(), 3U);
  EXPECT_EQ(script_.results[1].repeated_passes(), 0U);
}

// A stage of ranks that are threads; devices of different speed.
class StepLoopStageTest : public testing::Test {
 protected:
  static constexpr int kRanks = 3;

  StepLoopStageTest() {
    for (int rank = 1; rank < kRanks; ++rank) executors_[rank].quick = 1'000'000;
  }

  // A rank that fails is gone for the others.
  void Run() {
    OnThreads(kRanks, [this](int rank) {
      StepLoopOptions options;
      options.layout.world_rank = options.layout.tp_rank = rank;
      options.layout.tensor_parallel = kRanks;
      options.hidden = 4;
      options.step_tokens = 16;
      options.now_us = WaitBoard::SteadyMicroseconds;
      StepLoopParts parts;
      parts.plans = rank == 0 ? &script_ : nullptr;
      parts.results = rank == 0 ? &script_ : nullptr;
      parts.communicator = &stage_.at(rank);
      parts.executor = &executors_[rank];
      parts.board = &stage_.board(rank);
      statuses_[rank] = StepLoop(options, parts).Run();
      if (!statuses_[rank].ok()) stage_.at(rank).Abandon();
    });
  }

  ThreadStage stage_{kRanks};
  AheadExecutor executors_[kRanks];
  absl::Status statuses_[kRanks];
  Script script_;
};

TEST_F(StepLoopStageTest, EveryRankBeginsAndFinishesInTheOrderOfTheFirst) {
  for (uint64_t id = 1; id <= 9; ++id) script_.Add(Plan(id, id - 1), /*late=*/id % 4 == 0);
  for (AheadExecutor& executor : executors_) executor.must_wait = 7;
  Run();
  EXPECT_THAT(executors_[0].calls,
              ElementsAre("forget", "begin 1 7", "begin 2 entry0", "finish 1", "begin 3 entry0",
                          "finish 2", "finish 3", "begin 4 300", "begin 5 entry0", "finish 4",
                          "begin 6 entry0", "finish 5", "finish 6", "begin 7 600", "finish 7",
                          "begin 8 700", "begin 9 entry0", "finish 8", "finish 9"));
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_TRUE(statuses_[rank].ok()) << statuses_[rank];
    EXPECT_EQ(executors_[rank].calls, executors_[0].calls) << "rank " << rank;
  }
  EXPECT_EQ(script_.results.size(), 9U);
}

TEST_F(StepLoopStageTest, ARefusedPlanIsRefusedByAllWhenTheOneBeforeIsAnswered) {
  script_.Add(Plan(1));
  v1::StepPlan refused = Plan(2, 1);
  refused.add_copies();
  script_.Add(refused);
  Run();
  for (int rank = 0; rank < kRanks; ++rank) {
    EXPECT_THAT(std::string(statuses_[rank].message()), HasSubstr("plan 2: copies has 1 block"));
    EXPECT_THAT(executors_[rank].calls, ElementsAre("forget", "begin 1 7", "finish 1"));
  }
  EXPECT_EQ(script_.results.size(), 1U);
}

TEST_F(StepLoopStageTest, ARankThatFailsEndsTheOthers) {
  for (uint64_t id = 1; id <= 4; ++id) script_.Add(Plan(id, id - 1));
  executors_[1].fail_finish = 2;
  Run();
  EXPECT_EQ(statuses_[1].message(), "plan 2: the device is gone");
  for (const int rank : {0, 2}) {
    EXPECT_THAT(std::string(statuses_[rank].message()), HasSubstr("has given up"));
  }
}

}  // namespace
}  // namespace pergola
