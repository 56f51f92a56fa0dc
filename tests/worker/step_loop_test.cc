#include "worker/step/step_loop.h"

#include <atomic>
#include <deque>
#include <future>
#include <string>

#include "base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/thread_ranks.h"
#include "worker/comm/thread_transport.h"
#include "worker/comm/watchdog.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kHidden = 5;  // odd, so that shares need padding
constexpr int64_t kStepTokens = 64;
constexpr int32_t kNanId = 900;     // an entry that begins with this id answers NAN
constexpr int32_t kSilentId = 901;  // one that begins with this id samples nothing

// Each layer-free stage adds 1000 * (stage + 1) to a row that starts as the token id; the last
// stage "samples" the row's sum of all that. So a wrong, stale or misplaced row shows in the ids.
class FakeExecutor : public StageExecutor {
 public:
  FakeExecutor(const RankLayout& layout, StageCommunicator* communicator)
      : layout_(layout), communicator_(communicator) {}

  const ExecutorInfo& info() const override { return info_; }
  void LimitBlocks(int64_t block_count) override {}
  absl::Status Validate(const v1::StepPlan& plan) const override {
    for (const v1::Entry& entry : plan.entries()) {
      if (entry.slot() >= 64) {
        return absl::InvalidArgumentError("slot is 64; the limit is 63");
      }
    }
    return absl::OkStatus();
  }
  absl::Status Begin(const v1::StepPlan& plan, absl::Span<const int32_t> ids,
                     float* hidden) override {
    const int64_t rows = PlanRows(plan);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < kHidden; ++i) {
        float& value = hidden[row * kHidden + i];
        if (layout_.first_stage()) value = static_cast<float>(ids[row] + i);
        // Rank 0 brings the stage's part, the others nothing: the sum is right only if all take
        // part.
        value = layout_.leader() ? value + 1000.0F * static_cast<float>(layout_.stage + 1) : 0.0F;
      }
    }
    RETURN_IF_ERROR(communicator_->AllReduce(hidden, rows * kHidden));
    if (hang_ != nullptr) hang_->get();
    executed.push_back(plan.plan_id());
    seen_ids.emplace_back(ids.begin(), ids.end());
    if (!layout_.last_stage()) return absl::OkStatus();
    int64_t row = 0;
    for (const v1::Entry& entry : plan.entries()) {
      const int64_t count = std::max(1, entry.ids_size());
      row += count;
      v1::EntryResult result;
      if (!entry.ids().empty() && entry.ids(0) == kNanId) {
        result.set_status(v1::ENTRY_STATUS_NAN);
      } else if (entry.ids().empty() || entry.ids(0) != kSilentId) {
        const float* last = hidden + (row - 1) * kHidden;
        for (int64_t i = 1; i < kHidden; ++i) EXPECT_EQ(last[i], last[0] + static_cast<float>(i));
        result.add_ids(static_cast<int32_t>(last[0]));
      }
      begun_.push_back(result);
    }
    return absl::OkStatus();
  }
  absl::Status Finish(std::vector<v1::EntryResult>* results) override {
    *results = std::exchange(begun_, {});
    return absl::OkStatus();
  }
  bool RunsAhead() const override { return false; }
  bool MayBegin(const v1::StepPlan&) const override { return false; }
  absl::StatusOr<bool> Ready() override { return true; }
  int64_t repeated_passes() const override { return 0; }
  bool hops_on_device() const override { return false; }
  int64_t recordings() const override { return 0; }
  void ForgetSlots() override { ++forgotten; }
  void KeepLogits(bool) override {}
  absl::Span<const float> Logits(int64_t) const override { return {}; }
  void HangOn(std::shared_future<void>* hang) { hang_ = hang; }

  std::vector<uint64_t> executed;
  std::vector<std::vector<int32_t>> seen_ids;  // by plan
  int forgotten = 0;

 private:
  const RankLayout layout_;
  StageCommunicator* const communicator_;
  std::shared_future<void>* hang_ = nullptr;
  std::vector<v1::EntryResult> begun_;
  ExecutorInfo info_;
};

class FakeSource : public PlanSource {
 public:
  explicit FakeSource(std::deque<v1::StepPlan> plans) : plans_(std::move(plans)) {}
  absl::StatusOr<Next> Take(bool wait, v1::StepPlan* plan) override {
    if (wait && ticks_ > 0) {
      --ticks_;
      return Next::kNone;
    }
    if (plans_.empty() && !end_.ok()) return end_;
    if (plans_.empty()) return Next::kEnd;
    *plan = std::move(plans_.front());
    plans_.pop_front();
    return Next::kPlan;
  }
  void EndWith(absl::Status status) { end_ = std::move(status); }
  void TickFirst(int ticks) { ticks_ = ticks; }

 private:
  int ticks_ = 0;
  std::deque<v1::StepPlan> plans_;
  absl::Status end_;
};

class FakeSink : public ResultSink {
 public:
  void Push(v1::StepResult result) override { results.push_back(std::move(result)); }
  std::vector<v1::StepResult> results;
};

// A whole group as threads.
class TestGroup {
 public:
  TestGroup(int tp, int pp) : mailboxes_(std::make_shared<ThreadMailboxes>()) {
    for (int stage = 0; stage < pp; ++stage) stages_.push_back(std::make_unique<ThreadStage>(tp));
    for (int rank = 0; rank < tp * pp; ++rank) {
      RankLayout layout;
      layout.world_rank = rank;
      layout.tensor_parallel = tp;
      layout.pipeline_parallel = pp;
      layout.stage = rank / tp;
      layout.tp_rank = rank % tp;
      layouts_.push_back(layout);
      executors.push_back(
          std::make_unique<FakeExecutor>(layout, &stages_[layout.stage]->at(layout.tp_rank)));
    }
    statuses.resize(tp * pp);
  }

  void Run(std::deque<v1::StepPlan> plans, absl::Status end = absl::OkStatus()) {
    FakeSource source(std::move(plans));
    source.EndWith(std::move(end));
    source.TickFirst(3);
    OnThreads(static_cast<int>(layouts_.size()), [&](int rank) {
      ThreadStage& stage = *stages_[layouts_[rank].stage];
      ThreadTransport transport(mailboxes_, rank, &Board(rank));
      StepLoopOptions options;
      options.layout = layouts_[rank];
      options.hidden = kHidden;
      options.step_tokens = kStepTokens;
      options.now_us = [] { return int64_t{0}; };
      StepLoopParts parts;
      parts.plans = &source;
      parts.results = &sink;
      parts.communicator = &stage.at(layouts_[rank].tp_rank);
      parts.transport = &transport;
      parts.executor = executors[rank].get();
      parts.board = &Board(rank);
      StepLoop loop(options, parts);
      statuses[rank] = loop.Run();
      // In a job the failing rank's exit ends the others.
      if (!statuses[rank].ok()) Abandon();
    });
  }
  void Abandon() {
    mailboxes_->Abandon();
    for (auto& stage : stages_) stage->at(0).Abandon();
  }
  WaitBoard& Board(int rank) {
    return stages_[layouts_[rank].stage]->board(layouts_[rank].tp_rank);
  }
  absl::Status FirstError(absl::StatusCode code) const {
    for (const absl::Status& status : statuses) {
      if (status.code() == code) return status;
    }
    return absl::OkStatus();
  }

  FakeSink sink;
  std::vector<std::unique_ptr<FakeExecutor>> executors;
  std::vector<absl::Status> statuses;

 private:
  std::shared_ptr<ThreadMailboxes> mailboxes_;
  std::vector<std::unique_ptr<ThreadStage>> stages_;
  std::vector<RankLayout> layouts_;
};

v1::StepPlan Plan(uint64_t plan_id, uint64_t epoch, const std::vector<std::vector<int32_t>>& ids) {
  v1::StepPlan plan;
  plan.set_plan_id(plan_id);
  plan.set_epoch(epoch);
  for (size_t i = 0; i < ids.size(); ++i) {
    v1::Entry* entry = plan.add_entries();
    entry->set_slot(static_cast<uint32_t>(i));
    entry->mutable_ids()->Add(ids[i].begin(), ids[i].end());
  }
  return plan;
}

void AddReference(v1::StepPlan* plan, uint64_t plan_id, uint32_t entry) {
  v1::TokenRef* from = plan->add_entries()->mutable_from();
  from->set_plan_id(plan_id);
  from->set_entry(entry);
}

// What all stages add to an id.
int32_t Added(int pp) {
  return 1000 * pp * (pp + 1) / 2;
}

struct Shape {
  int tp, pp;
};

class StepLoopTest : public ::testing::TestWithParam<Shape> {};
INSTANTIATE_TEST_SUITE_P(Layouts, StepLoopTest,
                         ::testing::Values(Shape{1, 1}, Shape{2, 1}, Shape{3, 1}, Shape{1, 2},
                                           Shape{2, 2}, Shape{3, 2}, Shape{1, 3}, Shape{2, 3},
                                           Shape{3, 3}));

TEST_P(StepLoopTest, ResultsComeInPlanOrderWithEveryStagesWork) {
  TestGroup group(GetParam().tp, GetParam().pp);
  std::deque<v1::StepPlan> plans;
  for (uint64_t id = 1; id <= 40; ++id) {
    // From probes without rows to plans of more bytes than the first frame holds.
    std::vector<std::vector<int32_t>> entries;
    for (uint64_t e = 0; e < id % 5; ++e) {
      entries.emplace_back(1 + (id * e) % 9, static_cast<int32_t>(10 * id + e));
    }
    plans.push_back(Plan(id, 7, entries));
    if (id % 10 == 0) plans.back().add_starts()->mutable_history()->Resize(3000, 123456);
  }
  group.Run(plans);
  for (const absl::Status& status : group.statuses) EXPECT_TRUE(status.ok()) << status;
  ASSERT_EQ(group.sink.results.size(), 40U);
  for (uint64_t id = 1; id <= 40; ++id) {
    const v1::StepResult& result = group.sink.results[id - 1];
    EXPECT_EQ(result.plan_id(), id);
    EXPECT_EQ(result.epoch(), 7U);
    EXPECT_EQ(result.stages_size(), GetParam().pp);
    ASSERT_EQ(result.entries_size(), static_cast<int>(id % 5));
    for (int e = 0; e < result.entries_size(); ++e) {
      EXPECT_THAT(result.entries(e).ids(),
                  ElementsAre(static_cast<int32_t>(10 * id + e) + Added(GetParam().pp)));
    }
  }
}

TEST_P(StepLoopTest, ReferencesTakeTheTokenOfTheNamedEntry) {
  TestGroup group(GetParam().tp, GetParam().pp);
  std::deque<v1::StepPlan> plans = {Plan(1, 3, {{10}, {20, 21}})};
  v1::StepPlan second = Plan(2, 3, {});
  AddReference(&second, 1, 1);
  AddReference(&second, 1, 0);
  v1::StepPlan third = Plan(3, 3, {{5}});
  AddReference(&third, 2, 0);
  plans.push_back(second);
  plans.push_back(third);
  group.Run(plans);
  ASSERT_EQ(group.sink.results.size(), 3U);
  const int32_t added = Added(GetParam().pp);
  EXPECT_THAT(group.sink.results[1].entries(0).ids(), ElementsAre(21 + 2 * added));
  EXPECT_THAT(group.sink.results[1].entries(1).ids(), ElementsAre(10 + 2 * added));
  EXPECT_THAT(group.sink.results[2].entries(1).ids(), ElementsAre(21 + 3 * added));
}

TEST_P(StepLoopTest, ReferencesAreResolvedInTheFirstStageAndTheLast) {
  const Shape shape = GetParam();
  TestGroup group(shape.tp, shape.pp);
  v1::StepPlan second = Plan(2, 3, {{7}});
  AddReference(&second, 1, 1);
  group.Run({Plan(1, 3, {{10}, {20, 21}}), second});
  for (int rank = 0; rank < shape.tp * shape.pp; ++rank) {
    const int stage = rank / shape.tp;
    if (stage != 0 && stage != shape.pp - 1) continue;
    ASSERT_EQ(group.executors[rank]->seen_ids.size(), 2U) << "rank " << rank;
    EXPECT_THAT(group.executors[rank]->seen_ids[1], ElementsAre(7, 21 + Added(shape.pp)))
        << "rank " << rank;
  }
}

TEST_P(StepLoopTest, ANewEpochForgetsSlotsAndDropsPlansOfTheOld) {
  TestGroup group(GetParam().tp, GetParam().pp);
  group.Run({Plan(1, 3, {{10}}), Plan(2, 3, {{11}}), Plan(1, 8, {{12}}), Plan(3, 3, {{13}}),
             Plan(2, 8, {{14}})});
  std::vector<std::pair<uint64_t, uint64_t>> seen;
  for (const v1::StepResult& result : group.sink.results) {
    seen.emplace_back(result.epoch(), result.plan_id());
  }
  EXPECT_THAT(seen,
              ElementsAre(std::pair(3, 1), std::pair(3, 2), std::pair(8, 1), std::pair(8, 2)));
  for (const auto& executor : group.executors) {
    EXPECT_EQ(executor->forgotten, 2);
    EXPECT_THAT(executor->executed, ElementsAre(1, 2, 1, 2));
  }
}

TEST_P(StepLoopTest, AnInvalidPlanFailsOnEveryRankThatSeesIt) {
  TestGroup group(GetParam().tp, GetParam().pp);
  v1::StepPlan bad = Plan(2, 3, {{1}});
  bad.mutable_entries(0)->set_slot(64);
  group.Run({Plan(1, 3, {{1}}), bad, Plan(3, 3, {{1}})});
  EXPECT_THAT(std::string(group.FirstError(absl::StatusCode::kInvalidArgument).message()),
              HasSubstr("plan 2: slot is 64; the limit is 63"));
  for (const absl::Status& status : group.statuses) EXPECT_FALSE(status.ok());
  for (const auto& executor : group.executors) {
    for (const uint64_t id : executor->executed) EXPECT_EQ(id, 1U);
  }
}

// The text of the error with which a single rank refuses `plans`.
std::string Refusal(const std::deque<v1::StepPlan>& plans) {
  TestGroup group(1, 1);
  group.Run(plans);
  EXPECT_EQ(group.statuses[0].code(), absl::StatusCode::kInvalidArgument);
  return std::string(group.statuses[0].message());
}

TEST(StepLoopRefusalTest, APlanOutOfOrder) {
  EXPECT_THAT(Refusal({Plan(1, 3, {}), Plan(3, 3, {})}), HasSubstr("plan_id is 3; expected 2"));
  EXPECT_THAT(Refusal({Plan(1, 3, {}), Plan(1, 3, {})}), HasSubstr("plan_id is 1; expected 2"));
  EXPECT_THAT(Refusal({Plan(2, 3, {})}), HasSubstr("plan_id is 2; expected 1"));
}

TEST(StepLoopRefusalTest, MoreRowsThanAStepTakes) {
  EXPECT_THAT(Refusal({Plan(1, 3, {std::vector<int32_t>(kStepTokens + 1, 1)})}),
              HasSubstr("65 tokens; the limit is 64"));
}

TEST(StepLoopRefusalTest, ReferencesToThePresentTheFutureAndNothing) {
  for (const uint64_t from : {0, 2, 3}) {
    v1::StepPlan plan = Plan(2, 3, {});
    AddReference(&plan, from, 0);
    EXPECT_THAT(Refusal({Plan(1, 3, {{1}}), plan}), HasSubstr("it must be an earlier plan"));
  }
}

TEST(StepLoopRefusalTest, ReferencesToEntriesThatAreNotThereOrSampledNothing) {
  v1::StepPlan plan = Plan(2, 3, {});
  AddReference(&plan, 1, 4);
  EXPECT_THAT(Refusal({Plan(1, 3, {{1}}), plan}), HasSubstr("from.entry is 4; plan 1 had 1"));
  plan = Plan(2, 3, {});
  AddReference(&plan, 1, 0);
  EXPECT_THAT(Refusal({Plan(1, 3, {{kSilentId}}), plan}), HasSubstr("sampled no token"));
}

TEST(StepLoopRefusalTest, ReferencesToPlansLongAnswered) {
  std::deque<v1::StepPlan> plans;
  for (uint64_t id = 1; id <= 30; ++id) plans.push_back(Plan(id, 3, {{1}}));
  v1::StepPlan plan = Plan(31, 3, {});
  AddReference(&plan, 1, 0);
  plans.push_back(plan);
  EXPECT_THAT(Refusal(plans), HasSubstr("from.plan_id is 1; remembered are the last"));
}

TEST(StepLoopTest, AReferenceToAnEntryThatEndedWithNanDoesNotEndTheGroup) {
  TestGroup group(1, 2);
  v1::StepPlan second = Plan(2, 3, {});
  AddReference(&second, 1, 0);
  group.Run({Plan(1, 3, {{kNanId}}), second});
  ASSERT_EQ(group.sink.results.size(), 2U);
  EXPECT_EQ(group.sink.results[0].entries(0).status(), v1::ENTRY_STATUS_NAN);
  EXPECT_THAT(group.sink.results[1].entries(0).ids(), ElementsAre(Added(2)));
}

TEST(StepLoopTest, TheSourcesErrorEndsTheGroup) {
  TestGroup group(2, 2);
  group.Run({Plan(1, 3, {{1}})}, absl::DeadlineExceededError("no coordinator for 5 ms"));
  EXPECT_THAT(std::string(group.FirstError(absl::StatusCode::kDeadlineExceeded).message()),
              HasSubstr("no coordinator"));
}

// Rank 1 of the first stage never leaves its step; the watchdog of the rank that waits for it says
// so.
TEST(StepLoopTest, TheWatchdogNamesARankThatIsStuck) {
  TestGroup group(1, 2);
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  group.executors[0]->HangOn(&released);
  std::promise<std::string> report;
  std::atomic<bool> reported{false};
  Watchdog watchdog(group.Board(1), {/*limit_ms=*/50, /*poll_ms=*/5},
                    [&](const Wait& wait, int64_t) {
                      report.set_value(DescribeWait(wait, 50));
                      reported = true;
                      release.set_value();
                    });
  group.Run({Plan(1, 3, {{1}})});
  ASSERT_TRUE(reported);
  EXPECT_THAT(report.get_future().get(), HasSubstr(", waiting for rank 0, for 50 ms"));
}

}  // namespace
}  // namespace pergola
