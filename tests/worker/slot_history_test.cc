// What a slot keeps for sampling: its token history and every parameter.
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/plan_builder.h"
#include "worker/step/slot_table.h"

namespace pergola {
namespace {

using testing::ElementsAre;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

SlotLimits Limits() {
  SlotLimits limits;
  limits.slot_count = 3;
  limits.block_count = 10;
  limits.block_tokens = 16;
  limits.step_tokens = 40;
  limits.context_length = 70;
  limits.vocabulary = 100;
  limits.samples = true;
  return limits;
}

std::vector<int32_t> HistoryOf(const SampleRow& row) {
  return {row.history, row.history + row.history_count};
}

TEST(SlotHistoryTest, HistoryGrowsByEntriesAndEachRowSeesWhatIsBeforeIt) {
  SlotTable slots(Limits());
  BuiltPlan first;
  v1::SlotStart* start = first.Start(0);
  start->mutable_sampling()->set_no_repeat_ngram_size(3);
  start->set_computed(2);
  start->add_history(50);
  start->add_history(51);
  first.Start(1);
  first.Add(0, {7, 8, 9}, 2, {1});
  first.Add(1, {20}, 0, {2});
  ASSERT_TRUE(slots.Validate(first.plan).ok()) << slots.Validate(first.plan);
  slots.Apply(first.plan, first.ids);
  EXPECT_THAT(HistoryOf(slots.Row(0, 3)), ElementsAre(50, 51, 7));
  EXPECT_THAT(HistoryOf(slots.Row(0, 5)), ElementsAre(50, 51, 7, 8, 9));
  EXPECT_EQ(slots.Row(1, 1).history_count, 0) << "its parameters do not look back";
  BuiltPlan second(2);
  v1::Entry* entry = second.Add(0, {}, 5);
  entry->clear_logits_at();
  entry->mutable_from()->set_plan_id(1);
  ASSERT_TRUE(slots.Validate(second.plan).ok()) << slots.Validate(second.plan);
  const std::vector<int32_t> resolved = {33};
  slots.Apply(second.plan, resolved);
  EXPECT_THAT(HistoryOf(slots.Row(0, 6)), ElementsAre(50, 51, 7, 8, 9, 33));
}

TEST(SlotHistoryTest, RowCarriesEveryParameter) {
  SlotTable slots(Limits());
  BuiltPlan built;
  v1::SlotStart* start = built.Start(2, 0.5F, 11);
  start->set_index(3);
  start->set_prompt_tokens(1);
  v1::Sampling* sampling = start->mutable_sampling();
  sampling->set_top_k(100);
  sampling->set_top_p(0.9F);
  sampling->set_min_p(1);
  sampling->set_typical_p(0.8F);
  sampling->set_repetition_penalty(100);
  sampling->set_presence_penalty(-100);
  sampling->set_frequency_penalty(100);
  sampling->set_no_repeat_ngram_size(70);
  sampling->set_min_new_tokens(70);
  sampling->mutable_suppressed()->Resize(256, 99);
  for (int i = 0; i < 2; ++i) {
    v1::LogitBias* bias = sampling->add_logit_bias();
    bias->set_id(98 + i);
    bias->set_bias(i == 0 ? -kInfinity : 100);
  }
  sampling->set_logprobs(20);
  built.Add(2, {1, 2}, 0, {1});
  ASSERT_TRUE(slots.Validate(built.plan).ok()) << slots.Validate(built.plan);
  slots.Apply(built.plan, built.ids);
  const SampleRow row = slots.Row(2, 2);
  EXPECT_EQ(row.temperature, 0.5F);
  EXPECT_EQ(row.top_k, 100U);
  EXPECT_EQ(row.top_p, 0.9F);
  EXPECT_EQ(row.min_p, 1);
  EXPECT_EQ(row.typical_p, 0.8F);
  EXPECT_EQ(row.repetition_penalty, 100);
  EXPECT_EQ(row.presence_penalty, -100);
  EXPECT_EQ(row.frequency_penalty, 100);
  EXPECT_EQ(row.no_repeat_ngram_size, 70U);
  EXPECT_EQ(row.min_new_tokens, 70U);
  EXPECT_EQ(row.suppressed_count, 256);
  EXPECT_EQ(row.suppressed[255], 99);
  ASSERT_EQ(row.bias_count, 2);
  EXPECT_EQ(row.bias_ids[1], 99);
  EXPECT_EQ(row.biases[0], -kInfinity);
  EXPECT_EQ(row.seed, 11U);
  EXPECT_EQ(row.index, 3U);
  EXPECT_EQ(row.position, 2U);
  EXPECT_EQ(row.prompt_tokens, 1);
  EXPECT_EQ(slots.sampling(2).logprobs, 20);
}

TEST(SlotHistoryTest, ARankThatDoesNotSampleKeepsNoHistoryAndSaysTheSame) {
  SlotLimits limits = Limits();
  SlotTable sampling(limits);
  limits.samples = false;
  SlotTable other(limits);
  // 3 slots of 70 ids, 1024 biases with their ids and 256 suppressed ids.
  EXPECT_EQ(sampling.bytes() - other.bytes(), 3 * 4 * (70 + 2 * 1024 + 256));
  for (uint32_t history : {2U, 3U}) {
    BuiltPlan built;
    v1::SlotStart* start = built.Start(0);
    start->mutable_sampling()->set_repetition_penalty(2);
    start->set_computed(3);
    start->mutable_history()->Resize(static_cast<int>(history), 1);
    built.Add(0, {1}, 3, {1});
    EXPECT_EQ(other.Validate(built.plan), sampling.Validate(built.plan));
    if (history == 3) {
      EXPECT_EQ(other.Apply(built.plan, {}).count, 1);
    }
  }
}

}  // namespace
}  // namespace pergola
