#include "coordinator/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/fixtures.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

SchedulerLimits Limits(uint32_t stages = 1) {
  SchedulerLimits limits;
  limits.epoch = 9;
  limits.slot_count = 4;
  limits.block_count = 16;
  limits.block_tokens = 16;
  limits.step_tokens = 32;
  limits.prefill_rows = 16;
  limits.stages = stages;
  limits.vocabulary_size = 64;
  return limits;
}

class SchedulerTest : public testing::Test {
 protected:
  Sequence& Wait(uint32_t prompt, uint32_t max_new) {
    sequences_.push_back(MakeSequence(sequences_.size() + 1, prompt, max_new));
    queue_.waiting.push_back(sequences_.back().get());
    return *sequences_.back();
  }
  absl::Status Apply(Scheduler& scheduler, const v1::StepResult& result) {
    return scheduler.Apply(result, &outcomes_);
  }

  std::vector<std::unique_ptr<Sequence>> sequences_;
  TestQueue queue_;
  std::vector<Scheduler::Outcome> outcomes_;
};

TEST_F(SchedulerTest, HasNoPlanWhenNothingWaits) {
  Scheduler scheduler(Limits());
  EXPECT_EQ(scheduler.Plan(queue_), nullptr);
  EXPECT_EQ(scheduler.in_flight(), 0U);
}

TEST_F(SchedulerTest, StartsASequenceWithItsSamplingSeedAndBlocks) {
  Scheduler scheduler(Limits());
  Sequence& sequence = Wait(10, 5);
  sequence.request.seed = 77;
  sequence.request.index = 3;
  sequence.request.sampling.set_temperature(0.5F);
  const auto plan = scheduler.Plan(queue_);
  ASSERT_NE(plan, nullptr);
  EXPECT_EQ(plan->plan_id(), 1U);
  EXPECT_EQ(plan->epoch(), 9U);
  ASSERT_EQ(plan->starts_size(), 1);
  EXPECT_EQ(plan->starts(0).seed(), 77U);
  EXPECT_EQ(plan->starts(0).index(), 3U);
  EXPECT_EQ(plan->starts(0).sampling().temperature(), 0.5F);
  ASSERT_EQ(plan->entries_size(), 1);
  EXPECT_EQ(plan->entries(0).ids_size(), 10);
  EXPECT_EQ(plan->entries(0).block_ids_size(), 1);
  EXPECT_THAT(plan->entries(0).logits_at(), ElementsAre(9));
}

TEST_F(SchedulerTest, CutsALongPromptIntoChunksAndAsksForLogitsOnlyAtItsEnd) {
  Scheduler scheduler(Limits());
  Wait(40, 5);
  const auto first = scheduler.Plan(queue_);
  const auto second = scheduler.Plan(queue_);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(first->entries(0).ids_size(), 16);
  EXPECT_EQ(first->entries(0).logits_at_size(), 0);
  EXPECT_EQ(second->entries(0).first_position(), 16U);
  EXPECT_EQ(second->starts_size(), 0);
  EXPECT_EQ(scheduler.Plan(queue_), nullptr) << "the depth of one stage is 2";
  ASSERT_TRUE(Apply(scheduler, Answer(*first, 1)).ok());
  const auto third = scheduler.Plan(queue_);
  EXPECT_EQ(third->entries(0).ids_size(), 8);
  EXPECT_THAT(third->entries(0).logits_at(), ElementsAre(7));
}

TEST_F(SchedulerTest, RefersToATokenThatIsNotKnownYet) {
  Scheduler scheduler(Limits());
  Wait(4, 5);
  scheduler.Plan(queue_);
  const auto second = scheduler.Plan(queue_);
  ASSERT_EQ(second->entries_size(), 1);
  EXPECT_EQ(second->entries(0).ids_size(), 0);
  EXPECT_EQ(second->entries(0).from().plan_id(), 1U);
  EXPECT_EQ(second->entries(0).from().entry(), 0U);
  EXPECT_EQ(second->entries(0).first_position(), 4U);
}

TEST_F(SchedulerTest, NamesTheTokenOnceItIsKnown) {
  Scheduler scheduler(Limits(2));
  Wait(4, 5);
  Wait(4, 5);
  const auto first = scheduler.Plan(queue_);
  ASSERT_TRUE(Apply(scheduler, Answer(*first, 33)).ok());
  const auto second = scheduler.Plan(queue_);
  EXPECT_THAT(second->entries(0).ids(), ElementsAre(33));
  EXPECT_FALSE(second->entries(0).has_from());
}

TEST_F(SchedulerTest, DoesNotPlanBeyondTheLastToken) {
  Scheduler scheduler(Limits());
  Sequence& sequence = Wait(4, 2);
  const auto first = scheduler.Plan(queue_);
  const auto second = scheduler.Plan(queue_);
  ASSERT_TRUE(Apply(scheduler, Answer(*first, 1)).ok());
  EXPECT_EQ(scheduler.Plan(queue_), nullptr);
  ASSERT_TRUE(Apply(scheduler, Answer(*second, 2)).ok());
  EXPECT_EQ(scheduler.Plan(queue_), nullptr);
  EXPECT_EQ(sequence.known.size(), sequence.max_known);
}

TEST_F(SchedulerTest, ServesDecodesBeforePromptsWithinTheRowLimit) {
  SchedulerLimits limits = Limits();
  limits.step_tokens = 8;
  limits.prefill_rows = 100;
  Scheduler scheduler(limits);
  Wait(4, 9);
  const auto first = scheduler.Plan(queue_);
  ASSERT_TRUE(Apply(scheduler, Answer(*first, 1)).ok());
  Wait(30, 9);
  const auto second = scheduler.Plan(queue_);
  ASSERT_EQ(second->entries_size(), 2);
  EXPECT_EQ(second->entries(0).ids_size(), 1);
  EXPECT_EQ(second->entries(1).ids_size(), 7);
}

TEST_F(SchedulerTest, LeavesRowsToPromptsWhenDecodesFillThePlan) {
  SchedulerLimits limits = Limits();
  limits.step_tokens = 4;
  limits.prefill_rows = 4;
  limits.block_count = 64;
  Scheduler scheduler(limits);
  for (int i = 0; i < 3; ++i) Wait(1, 30);
  Sequence& late = Wait(60, 30);
  uint32_t plans = 0;
  while (late.planned < 60) {
    const auto plan = scheduler.Plan(queue_);
    ASSERT_NE(plan, nullptr);
    ASSERT_TRUE(Apply(scheduler, Answer(*plan, 1)).ok());
    ASSERT_LT(++plans, 64U) << "the prompt starves";
  }
}

TEST_F(SchedulerTest, KeepsASequenceInEverySecondPlanOfTwoStages) {
  Scheduler scheduler(Limits(2));
  for (int i = 0; i < 4; ++i) Wait(4, 9);
  const auto first = scheduler.Plan(queue_);
  EXPECT_EQ(first->entries_size(), 4);
  EXPECT_EQ(scheduler.Plan(queue_), nullptr) << "the next plan would wait for the one before";
  ASSERT_TRUE(Apply(scheduler, Answer(*first, 1)).ok());
  const auto second = scheduler.Plan(queue_);
  const auto third = scheduler.Plan(queue_);
  EXPECT_EQ(second->entries_size(), 2);
  EXPECT_EQ(third->entries_size(), 2);
  EXPECT_NE(second->entries(0).slot(), third->entries(0).slot());
  const auto fourth = scheduler.Plan(queue_);
  ASSERT_EQ(fourth->entries_size(), 2);
  EXPECT_EQ(fourth->entries(0).from().plan_id(), second->plan_id());
}

TEST_F(SchedulerTest, SendsOnlyTheNewPartOfABlockTable) {
  Scheduler scheduler(Limits());
  Wait(16, 9);
  const auto first = scheduler.Plan(queue_);
  EXPECT_EQ(first->entries(0).block_ids_size(), 1);
  const auto second = scheduler.Plan(queue_);
  EXPECT_EQ(second->entries(0).block_table_from(), 1U);
  EXPECT_EQ(second->entries(0).block_ids_size(), 1);
  ASSERT_TRUE(Apply(scheduler, Answer(*first, 1)).ok());
  EXPECT_EQ(scheduler.Plan(queue_)->entries(0).block_ids_size(), 0);
}

TEST_F(SchedulerTest, PreemptsYoungestWhenPoolIsFull) {
  SchedulerLimits limits = Limits();
  limits.block_count = 3;
  limits.prefill_rows = 32;
  Scheduler scheduler(limits);
  Sequence& older = Wait(16, 20);
  Sequence& younger = Wait(15, 20);
  ASSERT_EQ(scheduler.Plan(queue_)->entries_size(), 2);
  // The older takes the last free block for position 16; the younger needs one a step later.
  ASSERT_EQ(scheduler.Plan(queue_)->entries_size(), 2);
  v1::StepPlan first;
  first.set_plan_id(1);
  v1::StepResult result;
  result.set_plan_id(1);
  result.add_entries()->add_ids(5);
  result.add_entries()->add_ids(6);
  ASSERT_TRUE(Apply(scheduler, result).ok());
  const auto third = scheduler.Plan(queue_);
  EXPECT_EQ(third->entries_size(), 1);
  EXPECT_THAT(queue_.preempted, ElementsAre(younger.id));
  EXPECT_EQ(younger.computed, 0U);
  EXPECT_EQ(younger.planned, 0U);
  EXPECT_EQ(younger.known.size(), 16U) << "what is known stays";
  EXPECT_TRUE(older.running());
  EXPECT_EQ(scheduler.preemptions(), 1U);
  result.set_plan_id(2);
  ASSERT_TRUE(Apply(scheduler, result).ok());
  EXPECT_EQ(scheduler.overrun_tokens(), 1U) << "the younger's token of plan 2 is dropped";
}

TEST_F(SchedulerTest, AdmitsNobodyWhileBlocksAreShort) {
  SchedulerLimits limits = Limits();
  limits.block_count = 3;
  Scheduler scheduler(limits);
  Wait(16, 9);
  Sequence& second = Wait(32, 9);
  scheduler.Plan(queue_);
  scheduler.Plan(queue_);
  EXPECT_FALSE(second.running());
}

TEST_F(SchedulerTest, DropsAndCountsTheTokensOfAReleasedSequence) {
  Scheduler scheduler(Limits());
  Sequence& sequence = Wait(4, 9);
  const auto first = scheduler.Plan(queue_);
  const auto second = scheduler.Plan(queue_);
  scheduler.Release(sequence);
  EXPECT_EQ(scheduler.blocks().used_count(), 0U);
  EXPECT_EQ(scheduler.free_slots(), 4U);
  ASSERT_TRUE(Apply(scheduler, Answer(*first, 1)).ok());
  ASSERT_TRUE(Apply(scheduler, Answer(*second, 1)).ok());
  EXPECT_TRUE(outcomes_.empty());
  EXPECT_EQ(scheduler.overrun_tokens(), 2U);
}

TEST_F(SchedulerTest, ReusesASlotInTheNextPlanWithoutMixingUpResults) {
  Scheduler scheduler(Limits());
  Sequence& gone = Wait(4, 9);
  const auto first = scheduler.Plan(queue_);
  const uint32_t slot = gone.slot;
  scheduler.Release(gone);
  Sequence& next = Wait(4, 9);
  const auto second = scheduler.Plan(queue_);
  EXPECT_EQ(next.slot, slot);
  EXPECT_EQ(second->starts_size(), 1);
  ASSERT_TRUE(Apply(scheduler, Answer(*first, 1)).ok());
  EXPECT_EQ(next.known.size(), 4U) << "plan 1's token is not the new sequence's";
  ASSERT_TRUE(Apply(scheduler, Answer(*second, 2)).ok());
  EXPECT_EQ(next.known.back(), 2);
}

TEST_F(SchedulerTest, ReportsNan) {
  Scheduler scheduler(Limits());
  Sequence& sequence = Wait(4, 9);
  const auto plan = scheduler.Plan(queue_);
  v1::StepResult result;
  result.set_plan_id(plan->plan_id());
  result.add_entries()->set_status(v1::ENTRY_STATUS_NAN);
  ASSERT_TRUE(Apply(scheduler, result).ok());
  ASSERT_EQ(outcomes_.size(), 1U);
  EXPECT_EQ(outcomes_[0].sequence, &sequence);
  EXPECT_EQ(outcomes_[0].status, v1::ENTRY_STATUS_NAN);
}

TEST_F(SchedulerTest, RefusesResultsThatAreNotThePlans) {
  Scheduler scheduler(Limits());
  Sequence& sequence = Wait(4, 9);
  EXPECT_THAT(std::string(Apply(scheduler, v1::StepResult()).message()), HasSubstr("plan 0"));
  const auto plan = scheduler.Plan(queue_);
  const v1::StepResult good = Answer(*plan, 1);
  struct Case {
    const char* says;
    std::function<void(v1::StepResult&)> damage;
  };
  const Case cases[] = {
      {"plan 2", [](v1::StepResult& result) { result.set_plan_id(2); }},
      {"2 entries", [](v1::StepResult& result) { result.add_entries(); }},
      {"0 entries", [](v1::StepResult& result) { result.clear_entries(); }},
      {"2 ids", [](v1::StepResult& result) { result.mutable_entries(0)->add_ids(1); }},
      {"0 ids", [](v1::StepResult& result) { result.mutable_entries(0)->clear_ids(); }},
      {"id 64", [](v1::StepResult& result) { result.mutable_entries(0)->set_ids(0, 64); }},
      {"id -1", [](v1::StepResult& result) { result.mutable_entries(0)->set_ids(0, -1); }},
      {"status 5",
       [](v1::StepResult& result) {
         result.mutable_entries(0)->set_status(static_cast<v1::EntryStatus>(5));
       }},
      {"1 ids instead of 0",
       [](v1::StepResult& result) { result.mutable_entries(0)->set_status(v1::ENTRY_STATUS_NAN); }},
  };
  for (const Case& damaged : cases) {
    v1::StepResult result = good;
    damaged.damage(result);
    const absl::Status status = Apply(scheduler, result);
    EXPECT_THAT(std::string(status.message()), HasSubstr(damaged.says));
    EXPECT_EQ(sequence.computed, 0U);
    EXPECT_EQ(scheduler.in_flight(), 1U);
  }
  EXPECT_TRUE(Apply(scheduler, good).ok());
  EXPECT_FALSE(Apply(scheduler, good).ok()) << "the same answer twice";
}

TEST_F(SchedulerTest, ProbesCountAsPlansInFlight) {
  Scheduler scheduler(Limits());
  Wait(4, 9);
  const auto probe = scheduler.Probe();
  EXPECT_EQ(probe->entries_size(), 0);
  EXPECT_NE(scheduler.Plan(queue_), nullptr);
  EXPECT_EQ(scheduler.Plan(queue_), nullptr);
  EXPECT_TRUE(Apply(scheduler, Answer(*probe, 0)).ok());
}

TEST_F(SchedulerTest, TellsWhoIsInAPlan) {
  Scheduler scheduler(Limits());
  Sequence& first = Wait(4, 9);
  Sequence& second = Wait(4, 9);
  scheduler.Plan(queue_);
  EXPECT_THAT(scheduler.SequencesOf(1), ElementsAre(&first, &second));
  scheduler.Release(first);
  EXPECT_THAT(scheduler.SequencesOf(1), ElementsAre(&second));
  EXPECT_TRUE(scheduler.SequencesOf(2).empty());
  EXPECT_TRUE(scheduler.SequencesOf(0).empty());
}

TEST_F(SchedulerTest, RotatesDecodesThatDoNotFitOnePlan) {
  SchedulerLimits limits = Limits();
  limits.step_tokens = 2;
  Scheduler scheduler(limits);
  for (int i = 0; i < 4; ++i) Wait(1, 9);
  for (int plan = 0; plan < 20; ++plan) {
    const auto made = scheduler.Plan(queue_);
    if (made == nullptr) break;
    EXPECT_LE(made->entries_size(), 2);
    ASSERT_TRUE(Apply(scheduler, Answer(*made, 1)).ok());
  }
  for (const auto& sequence : sequences_) {
    EXPECT_EQ(sequence->known.size(), sequence->max_known);
  }
}

}  // namespace
}  // namespace pergola
