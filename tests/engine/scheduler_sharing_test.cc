// Scheduler: prefix hits, siblings, prompt scores, the budget of a step and the watermark.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/engine/scheduler.h"
#include "tests/engine/fixtures.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

SchedulerLimits Limits() {
  SchedulerLimits limits;
  limits.epoch = 9;
  limits.slot_count = 4;
  limits.block_count = 32;
  limits.block_tokens = 16;
  limits.step_tokens = 256;
  limits.prefill_rows = 128;
  limits.vocabulary_size = 64;
  return limits;
}

class SharingTest : public testing::Test {
 protected:
  Sequence& Wait(uint32_t prompt, uint32_t max_new) {
    sequences_.push_back(MakeSequence(sequences_.size() + 1, prompt, max_new));
    queue_.waiting.push_back(sequences_.back().get());
    return *sequences_.back();
  }
  // Makes and answers plans until all have ended.
  void RunAll(Scheduler& scheduler) {
    while (auto plan = scheduler.Plan(queue_)) {
      ASSERT_TRUE(scheduler.Apply(Answer(*plan, 1), &outcomes_).ok());
      const std::vector<Sequence*> running = scheduler.running();
      for (Sequence* sequence : running) {
        if (sequence->known.size() == sequence->max_known) scheduler.Release(*sequence);
      }
    }
  }
  // One plan that is made and answered at once.
  std::shared_ptr<v1::StepPlan> Step(Scheduler& scheduler, int64_t time_us = 0) {
    auto plan = scheduler.Plan(queue_);
    if (plan == nullptr) return plan;
    v1::StepResult result = Answer(*plan, 1);
    if (time_us > 0) result.add_stages()->set_compute_us(static_cast<uint32_t>(time_us));
    EXPECT_TRUE(scheduler.Apply(result, &outcomes_).ok());
    return plan;
  }

  std::vector<std::unique_ptr<Sequence>> sequences_;
  TestQueue queue_;
  std::vector<Scheduler::Outcome> outcomes_;
};

TEST_F(SharingTest, ASecondPromptStartsBehindTheFullBlocksOfTheFirst) {
  Scheduler scheduler(Limits());
  const Sequence& first = Wait(40, 9);
  scheduler.Plan(queue_);
  const Sequence& second = Wait(50, 9);
  const auto plan = scheduler.Plan(queue_);
  ASSERT_EQ(plan->starts_size(), 1);
  EXPECT_EQ(plan->starts(0).computed(), 32U);
  EXPECT_EQ(plan->starts(0).prompt_tokens(), 50U);
  EXPECT_EQ(plan->starts(0).history_size(), 0) << "no parameter looks back";
  const v1::Entry& entry = plan->entries(1);
  EXPECT_EQ(entry.first_position(), 32U);
  EXPECT_EQ(entry.ids_size(), 18);
  ASSERT_EQ(entry.block_ids_size(), 4);
  EXPECT_EQ(entry.block_ids(0), static_cast<int>(first.blocks[0]));
  EXPECT_EQ(second.blocks[1], first.blocks[1]);
  EXPECT_EQ(scheduler.blocks().references(first.blocks[1]), 2U);
  EXPECT_EQ(scheduler.prefix_counts().hit_tokens, 32U);
  EXPECT_EQ(scheduler.prefix_counts().missed_tokens, 40U + 18U);
}

TEST_F(SharingTest, NothingIsSharedWithinThePlanThatWritesIt) {
  Scheduler scheduler(Limits());
  Wait(40, 9);
  Wait(40, 9);
  const auto plan = scheduler.Plan(queue_);
  ASSERT_EQ(plan->starts_size(), 2);
  EXPECT_EQ(plan->starts(1).computed(), 0U);
}

TEST_F(SharingTest, AtLeastOneRowIsComputed) {
  Scheduler scheduler(Limits());
  Wait(32, 9);
  scheduler.Plan(queue_);
  Wait(32, 9);
  const auto plan = scheduler.Plan(queue_);
  EXPECT_EQ(plan->starts(0).computed(), 16U);
  EXPECT_THAT(plan->entries(1).logits_at(), ElementsAre(15));
}

TEST_F(SharingTest, TenantsDoNotSeeEachOthersPrefixes) {
  Scheduler scheduler(Limits());
  Wait(40, 9).request.tenant = "a";
  scheduler.Plan(queue_);
  Wait(40, 9).request.tenant = "b";
  EXPECT_EQ(scheduler.Plan(queue_)->starts(0).computed(), 0U);
}

TEST_F(SharingTest, APrefixOutlivesItsSequenceAndCoversWhatWasSampled) {
  Scheduler scheduler(Limits());
  const Sequence& first = Wait(10, 24);
  RunAll(scheduler);
  ASSERT_EQ(first.known.size(), 34U);
  EXPECT_EQ(scheduler.blocks().used_count(), 0U);
  EXPECT_EQ(scheduler.blocks().cached_count(), 2U);
  Sequence& next = Wait(34, 9);
  next.known = first.known;
  EXPECT_EQ(scheduler.CachedTokens(next), 32U);
  EXPECT_EQ(scheduler.Plan(queue_)->starts(0).computed(), 32U);
}

TEST_F(SharingTest, TokensThatAreNotKnownYetAreNotShared) {
  Scheduler scheduler(Limits());
  Sequence& first = Wait(16, 9);
  const auto one = scheduler.Plan(queue_);
  const auto two = scheduler.Plan(queue_);
  ASSERT_EQ(first.planned, 17U);
  EXPECT_EQ(scheduler.blocks().index().size(), 1U);
  ASSERT_TRUE(scheduler.Apply(Answer(*one, 1), &outcomes_).ok());
  EXPECT_EQ(first.known.size(), 17U);
  EXPECT_EQ(scheduler.blocks().index().size(), 1U) << "17 positions are one full block";
}

TEST_F(SharingTest, APenaltyGetsTheIdsOfTheSharedPositions) {
  Scheduler scheduler(Limits());
  Wait(40, 9);
  scheduler.Plan(queue_);
  Sequence& second = Wait(40, 9);
  second.request.sampling.set_frequency_penalty(0.5F);
  const auto plan = scheduler.Plan(queue_);
  ASSERT_EQ(plan->starts(0).history_size(), 32);
  EXPECT_EQ(plan->starts(0).history(31), second.known[31]);
}

TEST_F(SharingTest, CanBeSwitchedOff) {
  SchedulerLimits limits = Limits();
  limits.prefix_cache = false;
  Scheduler scheduler(limits);
  Wait(40, 9);
  scheduler.Plan(queue_);
  Wait(40, 9);
  EXPECT_EQ(scheduler.Plan(queue_)->starts(0).computed(), 0U);
  EXPECT_EQ(scheduler.blocks().index().size(), 0U);
}

TEST_F(SharingTest, SiblingsStartBehindThePromptWithACopyOfItsLastBlock) {
  Scheduler scheduler(Limits());
  auto fork = std::make_shared<ForkGroup>();
  Sequence& leader = Wait(40, 9);
  leader.request.fork_group = fork;
  fork->leader = &leader;
  scheduler.Plan(queue_);
  Sequence& sibling = Wait(40, 9);
  sibling.request.fork_group = fork;
  const auto plan = scheduler.Plan(queue_);
  ASSERT_EQ(plan->copies_size(), 1);
  EXPECT_EQ(plan->copies(0).from_block(), leader.blocks[2]);
  EXPECT_EQ(plan->copies(0).to_block(), sibling.blocks[2]);
  EXPECT_NE(sibling.blocks[2], leader.blocks[2]);
  EXPECT_EQ(sibling.blocks[1], leader.blocks[1]);
  EXPECT_EQ(plan->starts(0).computed(), 39U);
  EXPECT_EQ(plan->entries(1).ids_size(), 1);
  EXPECT_EQ(scheduler.prefix_counts().forks, 1U);
}

TEST_F(SharingTest, APromptOfFullBlocksNeedsACopyOfAllButItsLastPosition) {
  Scheduler scheduler(Limits());
  auto fork = std::make_shared<ForkGroup>();
  Sequence& leader = Wait(32, 9);
  leader.request.fork_group = fork;
  fork->leader = &leader;
  scheduler.Plan(queue_);
  Sequence& sibling = Wait(32, 9);
  sibling.request.fork_group = fork;
  const auto plan = scheduler.Plan(queue_);
  ASSERT_EQ(plan->copies_size(), 1);
  EXPECT_EQ(plan->copies(0).from_block(), leader.blocks[1]);
  EXPECT_EQ(plan->starts(0).computed(), 31U);
}

TEST_F(SharingTest, ASiblingWithAnotherPromptGetsNothing) {
  Scheduler scheduler(Limits());
  auto fork = std::make_shared<ForkGroup>();
  Sequence& leader = Wait(10, 9);
  leader.request.fork_group = fork;
  fork->leader = &leader;
  scheduler.Plan(queue_);
  Sequence& other = Wait(10, 9);
  other.known[3] = 63;
  other.request.fork_group = fork;
  EXPECT_EQ(scheduler.Plan(queue_)->starts(0).computed(), 0U);
}

TEST_F(SharingTest, APreemptedSequenceComesBackToItsOwnBlocks) {
  Scheduler scheduler(Limits());
  Sequence& sequence = Wait(40, 9);
  Step(scheduler);
  scheduler.Release(sequence);
  queue_.waiting.push_back(&sequence);
  EXPECT_EQ(scheduler.Plan(queue_)->starts(0).computed(), 32U);
}

TEST_F(SharingTest, ScoresAPromptInChunksWithoutPrefixHits) {
  SchedulerLimits limits = Limits();
  limits.prefill_rows = 16;
  Scheduler scheduler(limits);
  Wait(20, 9);
  Step(scheduler);
  Step(scheduler);
  Sequence& scored = Wait(20, 0);
  scored.request.prompt_logprobs = 3;
  const auto first = scheduler.Plan(queue_);
  const v1::Entry& chunk = first->entries(first->entries_size() - 1);
  EXPECT_EQ(first->starts(0).computed(), 0U);
  EXPECT_EQ(chunk.target_logprobs(), 3U);
  ASSERT_EQ(chunk.targets_size(), 16);
  EXPECT_EQ(chunk.targets(0), scored.known[1]);
  const auto second = scheduler.Plan(queue_);
  const v1::Entry& rest = second->entries(second->entries_size() - 1);
  EXPECT_EQ(rest.ids_size(), 3) << "the last id has no successor to score";
  EXPECT_EQ(rest.targets_size(), 3);
  EXPECT_EQ(rest.logits_at_size(), 0);
  v1::StepResult result = Answer(*first, 1);
  EXPECT_THAT(std::string(scheduler.Apply(result, &outcomes_).message()),
              HasSubstr("0 target log-probabilities instead of 16"));
  for (int i = 0; i < 16; ++i) {
    result.mutable_entries(first->entries_size() - 1)->add_target_logprobs();
  }
  ASSERT_TRUE(scheduler.Apply(result, &outcomes_).ok());
  EXPECT_EQ(scored.scored, 16U);
}

TEST_F(SharingTest, RefusesLogprobsThatNobodyAskedForOrThatAreMisshapen) {
  Scheduler scheduler(Limits());
  Wait(4, 9);
  const auto plan = scheduler.Plan(queue_);
  v1::StepResult result = Answer(*plan, 1);
  result.mutable_entries(0)->add_logprobs();
  EXPECT_THAT(std::string(scheduler.Apply(result, &outcomes_).message()),
              HasSubstr("1 log-probabilities instead of 0"));
  sequences_[0]->request.sampling.set_logprobs(2);
  result.mutable_entries(0)->mutable_logprobs(0)->add_top_ids(1);
  EXPECT_THAT(std::string(scheduler.Apply(result, &outcomes_).message()),
              HasSubstr("not as many values as ids"));
  result.mutable_entries(0)->mutable_logprobs(0)->add_top_logprobs(1);
  EXPECT_TRUE(scheduler.Apply(result, &outcomes_).ok());
}

TEST_F(SharingTest, PromptRowsFollowTheStepTargetWhileOthersDecode) {
  SchedulerLimits limits = Limits();
  limits.step_target_us = 4000;
  Scheduler scheduler(limits);
  Wait(1, 60);
  // 100 us per row, prompts of various lengths teach it.
  for (uint32_t i = 0; i < 20; ++i) {
    Sequence& taught = Wait(2 + i % 5 * 4, 1);
    const auto plan = scheduler.Plan(queue_);
    int64_t rows = 0;
    for (const v1::Entry& entry : plan->entries()) rows += std::max(1, entry.ids_size());
    v1::StepResult result = Answer(*plan, 1);
    result.add_stages()->set_compute_us(static_cast<uint32_t>(100 * rows));
    ASSERT_TRUE(scheduler.Apply(result, &outcomes_).ok());
    if (taught.running()) scheduler.Release(taught);
  }
  ASSERT_TRUE(scheduler.cost().known());
  Sequence& late = Wait(200, 9);
  late.known[0] = 63;  // no prefix of the others
  const auto plan = scheduler.Plan(queue_);
  // One decode and 39 prompt rows are 40 rows of 100 us; rounding of doubles may cost one.
  ASSERT_EQ(plan->entries_size(), 2);
  EXPECT_NEAR(plan->entries(1).ids_size(), 39, 1);
}

TEST_F(SharingTest, APromptMovesOnHoweverDearARowIs) {
  SchedulerLimits limits = Limits();
  limits.step_target_us = 1;
  Scheduler scheduler(limits);
  Wait(1, 100);
  for (int i = 0; i < 20; ++i) Step(scheduler, 5000);
  Wait(64, 9).known[0] = 63;
  EXPECT_EQ(scheduler.Plan(queue_)->entries(1).ids_size(), 16);
}

TEST_F(SharingTest, AdmissionKeepsTheWatermarkFree) {
  SchedulerLimits limits = Limits();
  limits.block_count = 200;  // 1 % are 2 blocks
  limits.step_tokens = limits.prefill_rows = 4096;
  Scheduler scheduler(limits);
  Wait(16 * 100 - 8, 9);
  Wait(16 * 98 + 1, 9).known[0] = 63;
  scheduler.Plan(queue_);
  EXPECT_EQ(scheduler.running().size(), 1U) << "99 more would leave 1 of 200";
  sequences_[1]->known.pop_back();
  scheduler.Plan(queue_);
  EXPECT_EQ(scheduler.running().size(), 2U);
}

// 8 slots compete for blocks that hold about half of what they want. The watermark is what keeps a
// newcomer from being let in only to lose its blocks.
TEST_F(SharingTest, AWorkloadAtTheEdgeDoesNotThrash) {
  SchedulerLimits limits = Limits();
  limits.slot_count = 8;
  limits.block_count = 40;
  Scheduler scheduler(limits);
  for (int i = 0; i < 60; ++i) {
    Sequence& sequence = Wait(30, 130);
    sequence.known[0] = i;  // nothing to share
  }
  uint64_t tokens = 0;
  while (auto plan = Step(scheduler)) {
    tokens += static_cast<uint64_t>(plan->entries_size());
    const std::vector<Sequence*> running = scheduler.running();
    for (Sequence* sequence : running) {
      if (sequence->known.size() == sequence->max_known) scheduler.Release(*sequence);
    }
  }
  EXPECT_GE(tokens, 60U * 130);
  EXPECT_GT(scheduler.preemptions(), 0U) << "this is no edge";
  const double per_thousand =
      1000.0 * static_cast<double>(scheduler.preemptions()) / static_cast<double>(tokens);
  std::printf("%.1f preemptions per 1000 tokens\n", per_thousand);
  // Each sequence of 130 tokens is preempted less than once in the mean.
  EXPECT_LT(per_thousand, 1000.0 / 130);
}

TEST_F(SharingTest, ASlowReaderLosesItsBlocksBeforeYoungerOnesDo) {
  SchedulerLimits limits = Limits();
  limits.block_count = 4;
  Scheduler scheduler(limits);
  Sequence& slow = Wait(16, 40);
  Sequence& young = Wait(15, 40);
  young.known[0] = 63;
  Step(scheduler);
  slow.paused = true;
  while (queue_.preempted.empty()) ASSERT_NE(Step(scheduler), nullptr);
  EXPECT_THAT(queue_.preempted, ElementsAre(slow.id));
  EXPECT_TRUE(young.running());
}

TEST_F(SharingTest, APausedSequenceIsInNoPlan) {
  Scheduler scheduler(Limits());
  Sequence& slow = Wait(4, 40);
  Sequence& other = Wait(4, 40);
  Step(scheduler);
  slow.paused = true;
  const auto plan = Step(scheduler);
  ASSERT_EQ(plan->entries_size(), 1);
  EXPECT_EQ(plan->entries(0).slot(), other.slot);
  slow.paused = false;
  EXPECT_EQ(Step(scheduler)->entries_size(), 2);
}

TEST_F(SharingTest, AStalledReaderMakesRoomForANewcomer) {
  SchedulerLimits limits = Limits();
  limits.slot_count = 1;
  Scheduler scheduler(limits);
  Sequence& slow = Wait(4, 40);
  Step(scheduler);
  slow.paused = true;
  Sequence& next = Wait(4, 40);
  EXPECT_EQ(scheduler.Plan(queue_), nullptr) << "a short pause costs no slot";
  slow.stalled = true;
  queue_.waiting = {&next};
  ASSERT_NE(scheduler.Plan(queue_), nullptr);
  EXPECT_TRUE(next.running());
  EXPECT_FALSE(slow.running());
}

TEST_F(SharingTest, KeepsTheOrderOfRanksAmongThoseThatRun) {
  Scheduler scheduler(Limits());
  Wait(4, 40).rank = 5;
  Wait(4, 40).rank = -5;
  scheduler.Plan(queue_);
  EXPECT_THAT(scheduler.running(), ElementsAre(sequences_[1].get(), sequences_[0].get()));
}

}  // namespace
}  // namespace pergola
