#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/plan_builder.h"
#include "worker/step/slot_table.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

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

// A table whose slot 1 has computed 20 positions in blocks 4 and 7, and whose slot 2 has started.
SlotTable Running() {
  SlotTable slots(Limits());
  BuiltPlan built;
  built.Start(1);
  built.Start(2);
  built.Add(1, std::vector<int32_t>(20, 5), 0, {4, 7});
  EXPECT_TRUE(slots.Validate(built.plan).ok());
  slots.Apply(built.plan, built.ids);
  return slots;
}

struct BadPlan {
  std::string name;
  std::string message;  // whole
  std::function<void(BuiltPlan*)> make;
};

std::ostream& operator<<(std::ostream& out, const BadPlan& bad) {
  return out << bad.name;
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<BadPlan> BadStarts() {
  return {
      {"StartSlot", "starts[0].slot is 3; there are 3 slots", [](BuiltPlan* b) { b->Start(3); }},
      {"StartTwice", "starts[1].slot is 0, started twice in one plan",
       [](BuiltPlan* b) {
         b->Start(0);
         b->Start(0);
       }},
      {"TemperatureNegative", "starts[0] (slot 0): sampling.temperature is -1; it must be 0 to 100",
       [](BuiltPlan* b) { b->Start(0, -1); }},
      {"TemperatureNan", "starts[0] (slot 0): sampling.temperature is nan; it must be 0 to 100",
       [](BuiltPlan* b) { b->Start(0, kNan); }},
      {"TemperatureInf", "starts[0] (slot 0): sampling.temperature is inf; it must be 0 to 100",
       [](BuiltPlan* b) { b->Start(0, kInfinity); }},
      {"TopPZero", "starts[0] (slot 0): sampling.top_p is 0; it must be above 0 and at most 1",
       [](BuiltPlan* b) { b->Start(0, 1)->mutable_sampling()->set_top_p(0); }},
      {"TopPLarge", "starts[0] (slot 0): sampling.top_p is 1.5; it must be above 0 and at most 1",
       [](BuiltPlan* b) { b->Start(0, 1)->mutable_sampling()->set_top_p(1.5F); }},
      {"TopPNan", "starts[0] (slot 0): sampling.top_p is nan; it must be above 0 and at most 1",
       [](BuiltPlan* b) { b->Start(0, 1)->mutable_sampling()->set_top_p(kNan); }},
      {"History", "starts[0] (slot 0): history[1] is 100; the vocabulary has 100 ids",
       [](BuiltPlan* b) {
         v1::SlotStart* start = b->Start(0);
         start->add_history(99);
         start->add_history(100);
       }},
      {"CopyFrom", "copies[0].from_block is 10; there are 10 blocks",
       [](BuiltPlan* b) { b->plan.add_copies()->set_from_block(10); }},
      {"CopyTo", "copies[1].to_block is 4294967295; there are 10 blocks",
       [](BuiltPlan* b) {
         b->plan.add_copies()->set_to_block(1);
         b->plan.add_copies()->set_to_block(4294967295U);
       }},
      {"CopySelf", "copies[0].to_block is 3, the block copied from",
       [](BuiltPlan* b) {
         b->plan.add_copies()->set_to_block(3);
         b->plan.mutable_copies(0)->set_from_block(3);
       }},
  };
}

v1::Sampling* Sampling(BuiltPlan* built, float temperature = 0) {
  v1::SlotStart* start = built->Start(0, temperature);
  start->set_prompt_tokens(5);
  return start->mutable_sampling();
}

std::vector<BadPlan> BadParameters() {
  const std::string at = "starts[0] (slot 0): ";
  return {
      {"TopK", at + "sampling.top_k is 101; the vocabulary has 100 ids",
       [](BuiltPlan* b) { Sampling(b, 1)->set_top_k(101); }},
      {"MinPNegative", at + "sampling.min_p is -0.5; it must be 0 to 1",
       [](BuiltPlan* b) { Sampling(b, 1)->set_min_p(-0.5F); }},
      {"MinPNan", at + "sampling.min_p is nan; it must be 0 to 1",
       [](BuiltPlan* b) { Sampling(b, 1)->set_min_p(kNan); }},
      {"TypicalLarge", at + "sampling.typical_p is 1.5; it must be 0 to 1",
       [](BuiltPlan* b) { Sampling(b, 1)->set_typical_p(1.5F); }},
      {"TypicalNan", at + "sampling.typical_p is nan; it must be 0 to 1",
       [](BuiltPlan* b) { Sampling(b, 1)->set_typical_p(kNan); }},
      {"RepetitionNegative", at + "sampling.repetition_penalty is -1; it must be 0 to 100",
       [](BuiltPlan* b) { Sampling(b)->set_repetition_penalty(-1); }},
      {"RepetitionNan", at + "sampling.repetition_penalty is nan; it must be 0 to 100",
       [](BuiltPlan* b) { Sampling(b)->set_repetition_penalty(kNan); }},
      {"PresenceLarge", at + "sampling.presence_penalty is 101; it must be -100 to 100",
       [](BuiltPlan* b) { Sampling(b)->set_presence_penalty(101); }},
      {"PresenceNan", at + "sampling.presence_penalty is nan; it must be -100 to 100",
       [](BuiltPlan* b) { Sampling(b)->set_presence_penalty(kNan); }},
      {"FrequencyInf", at + "sampling.frequency_penalty is -inf; it must be -100 to 100",
       [](BuiltPlan* b) { Sampling(b)->set_frequency_penalty(-kInfinity); }},
      {"FrequencyNan", at + "sampling.frequency_penalty is nan; it must be -100 to 100",
       [](BuiltPlan* b) { Sampling(b)->set_frequency_penalty(kNan); }},
      {"Ngram", at + "sampling.no_repeat_ngram_size is 71; the context has 70 positions",
       [](BuiltPlan* b) { Sampling(b)->set_no_repeat_ngram_size(71); }},
      {"BiasId", at + "sampling.logit_bias[0].id is 100; the vocabulary has 100 ids",
       [](BuiltPlan* b) { Sampling(b)->add_logit_bias()->set_id(100); }},
      {"BiasOrder", at + "sampling.logit_bias[1].id is 4 after 4; ids must ascend",
       [](BuiltPlan* b) {
         v1::Sampling* sampling = Sampling(b);
         sampling->add_logit_bias()->set_id(4);
         sampling->add_logit_bias()->set_id(4);
       }},
      {"BiasNan", at + "sampling.logit_bias[0].bias is nan; it must be finite or minus infinity",
       [](BuiltPlan* b) { Sampling(b)->add_logit_bias()->set_bias(kNan); }},
      {"BiasInf", at + "sampling.logit_bias[0].bias is inf; it must be finite or minus infinity",
       [](BuiltPlan* b) { Sampling(b)->add_logit_bias()->set_bias(kInfinity); }},
      {"Biases", at + "sampling.logit_bias has 1025 ids; a slot takes 1024",
       [](BuiltPlan* b) {
         v1::Sampling* sampling = Sampling(b);
         for (int i = 0; i < 1025; ++i) sampling->add_logit_bias();
       }},
      {"MinNewTokens", at + "sampling.min_new_tokens is 71; the context has 70 positions",
       [](BuiltPlan* b) { Sampling(b)->set_min_new_tokens(71); }},
      {"Suppressed", at + "sampling.suppressed[1] is -1; the vocabulary has 100 ids",
       [](BuiltPlan* b) {
         v1::Sampling* sampling = Sampling(b);
         sampling->add_suppressed(99);
         sampling->add_suppressed(-1);
       }},
      {"SuppressedMany", at + "sampling.suppressed has 257 ids; a slot takes 256",
       [](BuiltPlan* b) { Sampling(b)->mutable_suppressed()->Resize(257, 0); }},
      {"Logprobs", at + "sampling.logprobs is 21; it must be 0 to 20",
       [](BuiltPlan* b) { Sampling(b)->set_logprobs(21); }},
      {"HistoryShort",
       at + "history has 2 ids; computed is 3, and the parameters look back at all of them",
       [](BuiltPlan* b) {
         Sampling(b)->set_repetition_penalty(2);
         b->plan.mutable_starts(0)->set_computed(3);
         b->plan.mutable_starts(0)->mutable_history()->Resize(2, 1);
       }},
      {"HistoryUnneeded", at + "history has 2 ids; computed is 3",
       [](BuiltPlan* b) {
         Sampling(b);
         b->plan.mutable_starts(0)->set_computed(3);
         b->plan.mutable_starts(0)->mutable_history()->Resize(2, 1);
       }},
      {"ComputedAll",
       at + "computed is 70; the context has 70 positions, of which one must be left to compute",
       [](BuiltPlan* b) { b->Start(0)->set_computed(70); }},
      {"PromptTokens", at + "prompt_tokens is 71; the context has 70 positions",
       [](BuiltPlan* b) { b->Start(0)->set_prompt_tokens(71); }},
      {"PromptTokensMissing",
       at + "prompt_tokens is 0; parameters that count new ids need it, 1 to 70",
       [](BuiltPlan* b) { b->Start(0)->mutable_sampling()->set_frequency_penalty(1); }},
      {"FirstPositionBeforeShared",
       "entries[0] (slot 0): first_position is 0; the slot has computed 16 positions",
       [](BuiltPlan* b) {
         b->Start(0)->set_computed(16);
         b->Add(0, {1}, 0, {1});
       }},
      {"SharedBlocksMissing",
       "entries[0] (slot 0): block_ids leave the table at 1 blocks of 16 tokens, which do not hold "
       "position 16",
       [](BuiltPlan* b) {
         b->Start(0)->set_computed(16);
         b->Add(0, {1}, 16, {1});
       }},
  };
}

std::vector<BadPlan> BadTokens() {
  const std::string at = "entries[0] (slot 1): ";
  return {
      {"Slot", "entries[0].slot is 3; there are 3 slots", [](BuiltPlan* b) { b->Add(3, {1}, 0); }},
      {"SlotTwice", "entries[1].slot is 1, which has an entry already",
       [](BuiltPlan* b) {
         b->Add(1, {1}, 20);
         b->Add(1, {1}, 21);
       }},
      {"NotStarted", "entries[0] (slot 0): slot is 0, which no plan has started",
       [](BuiltPlan* b) { b->Add(0, {1}, 0, {0}); }},
      {"NoTokens", at + "ids is empty and from is not set; an entry computes at least one token",
       [](BuiltPlan* b) { b->Add(1, {}, 20); }},
      {"IdsAndFrom", at + "ids has 2 tokens and from is set; give one",
       [](BuiltPlan* b) {
         b->Add(1, {1, 2}, 20)->mutable_from()->set_plan_id(1);
       }},
      {"FromItself", at + "from.plan_id is 2; it must be a plan before 2",
       [](BuiltPlan* b) { b->Add(1, {}, 20)->mutable_from()->set_plan_id(2); }},
      {"FromNothing", at + "from.plan_id is 0; it must be a plan before 2",
       [](BuiltPlan* b) { b->Add(1, {}, 20)->mutable_from(); }},
      {"FromWithMask", at + "mask is set beside from; a mask needs the token's value, give ids",
       [](BuiltPlan* b) {
         v1::Entry* entry = b->Add(1, {}, 20);
         entry->mutable_from()->set_plan_id(1);
         entry->mutable_mask()->add_ids(1);
       }},
      {"IdHigh", at + "ids[1] is 100; the vocabulary has 100 ids",
       [](BuiltPlan* b) {
         b->Add(1, {99, 100}, 20);
       }},
      {"IdNegative", at + "ids[0] is -1; the vocabulary has 100 ids",
       [](BuiltPlan* b) { b->Add(1, {-1}, 20); }},
      {"PositionAhead", at + "first_position is 21; the slot has computed 20 positions",
       [](BuiltPlan* b) { b->Add(1, {1}, 21); }},
      {"PositionBehind", at + "first_position is 19; the slot has computed 20 positions",
       [](BuiltPlan* b) { b->Add(1, {1}, 19); }},
      {"PositionAfterStart", at + "first_position is 20; the slot has computed 0 positions",
       [](BuiltPlan* b) {
         b->Start(1);
         b->Add(1, {1}, 20, {1, 2});
       }},
      {"StepTokens", "entries hold 41 tokens; a step takes at most 40",
       [](BuiltPlan* b) {
         b->Add(1, std::vector<int32_t>(12, 1), 20);
         b->Add(2, std::vector<int32_t>(29, 1), 0, {0, 1});
       }},
      {"Context", at + "first_position is 20 for 51 tokens; the context has 70 positions",
       [](BuiltPlan* b) { b->Add(1, std::vector<int32_t>(51, 1), 20); }},
  };
}

std::vector<BadPlan> BadTablesAndWants() {
  const std::string at = "entries[0] (slot 1): ";
  return {
      {"TableShort",
       at + "block_ids leave the table at 2 blocks of 16 tokens, which do not hold position 32",
       [](BuiltPlan* b) { b->Add(1, std::vector<int32_t>(13, 1), 20); }},
      {"TableCutShort",
       at + "block_ids leave the table at 1 blocks of 16 tokens, which do not hold position 20",
       [](BuiltPlan* b) { b->Add(1, {1}, 20, {4}); }},
      {"TableAfterStart",
       "entries[0] (slot 1): block_ids leave the table at 0 blocks of 16 tokens, which do not "
       "hold position 0",
       [](BuiltPlan* b) {
         b->Start(1);
         b->Add(1, {1}, 0);
       }},
      {"TableGap", at + "block_table_from is 3; the slot's table has 2 blocks",
       [](BuiltPlan* b) { b->Add(1, {1}, 20, {1})->set_block_table_from(3); }},
      {"TableLong",
       at + "block_ids has 4 blocks from index 2; a context of 70 tokens takes 5 blocks",
       [](BuiltPlan* b) {
         b->Add(1, {1}, 20, {0, 1, 2, 3})->set_block_table_from(2);
       }},
      {"Block", at + "block_ids[1] is 10; there are 10 blocks",
       [](BuiltPlan* b) {
         b->Add(1, {1}, 20, {9, 10});
       }},
      {"LogitsHigh", at + "logits_at[0] is 1; the entry has 1 tokens",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->set_logits_at(0, 1); }},
      {"LogitsOrder", at + "logits_at[1] is 1 after 1; offsets must ascend",
       [](BuiltPlan* b) {
         b->Add(1, {1, 2}, 20)->add_logits_at(1);
       }},
      {"Drafts", at + "draft_ids has 1 tokens; this executor verifies no drafts",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->add_draft_ids(4); }},
      {"Candidates", at + "candidates is 5; this executor returns none",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->set_candidates(5); }},
      {"Targets", at + "targets has 2 ids; the entry has 1 tokens",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->mutable_targets()->Resize(2, 1); }},
      {"TargetId", at + "targets[0] is 100; the vocabulary has 100 ids",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->add_targets(100); }},
      {"TargetLogprobs", at + "target_logprobs is 21; it must be 0 to 20",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->set_target_logprobs(21); }},
      {"MaskEmpty", at + "mask.ids is empty and so is mask.bitmap; a mask allows at least one id",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->mutable_mask(); }},
      {"MaskTwice", at + "mask.bitmap and mask.ids are both set; give one",
       [](BuiltPlan* b) {
         v1::Mask* mask = b->Add(1, {1}, 20)->mutable_mask();
         mask->set_bitmap(std::string(13, '\1'));
         mask->add_ids(1);
       }},
      {"MaskSize", at + "mask.bitmap has 12 bytes; a vocabulary of 100 needs 13",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->mutable_mask()->set_bitmap(std::string(12, '\1')); }},
      {"MaskId", at + "mask.ids[0] is -2; the vocabulary has 100 ids",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->mutable_mask()->add_ids(-2); }},
      {"MaskIdHigh", at + "mask.ids[0] is 100; the vocabulary has 100 ids",
       [](BuiltPlan* b) { b->Add(1, {1}, 20)->mutable_mask()->add_ids(100); }},
  };
}

class BadPlanTest : public testing::TestWithParam<BadPlan> {};

TEST_P(BadPlanTest, IsRefusedInWordsAndChangesNothing) {
  const SlotTable slots = Running();
  BuiltPlan built(2);
  // Add() wants the last token's logits, which an entry without tokens does not have.
  GetParam().make(&built);
  for (v1::Entry& entry : *built.plan.mutable_entries()) {
    if (entry.ids_size() == 0) entry.clear_logits_at();
  }
  const absl::Status status = slots.Validate(built.plan);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), GetParam().message);
  BuiltPlan next(2);
  next.Add(1, {1}, 20);
  next.Add(2, {1}, 0, {0});
  EXPECT_TRUE(slots.Validate(next.plan).ok());
}

std::string BadPlanName(const testing::TestParamInfo<BadPlan>& info) {
  return info.param.name;
}
INSTANTIATE_TEST_SUITE_P(Starts, BadPlanTest, testing::ValuesIn(BadStarts()), BadPlanName);
INSTANTIATE_TEST_SUITE_P(Parameters, BadPlanTest, testing::ValuesIn(BadParameters()), BadPlanName);
INSTANTIATE_TEST_SUITE_P(Tokens, BadPlanTest, testing::ValuesIn(BadTokens()), BadPlanName);
INSTANTIATE_TEST_SUITE_P(Rest, BadPlanTest, testing::ValuesIn(BadTablesAndWants()), BadPlanName);

TEST(SlotTableTest, PlanAtEveryLimitIsTaken) {
  const SlotTable slots = Running();
  BuiltPlan built(2);
  built.plan.add_copies()->set_to_block(9);
  built.Start(0, 100)->mutable_sampling()->set_top_p(1e-6F);
  built.Start(2)->mutable_sampling()->set_top_p(0);  // unused: greedy
  built.Add(0, std::vector<int32_t>(28, 99), 0, {9, 8})->mutable_mask()->add_ids(99);
  v1::Entry* entry = built.Add(1, std::vector<int32_t>(12, 0), 20, {1, 2, 3});
  entry->set_block_table_from(2);
  entry->mutable_mask()->set_bitmap(std::string(13, '\0'));
  EXPECT_TRUE(slots.Validate(built.plan).ok()) << slots.Validate(built.plan);
}

TEST(SlotTableTest, LastPositionOfTheContextMayBeComputed) {
  SlotTable slots = Running();
  BuiltPlan second(2);
  second.Add(1, std::vector<int32_t>(40, 1), 20, {1, 2})->set_block_table_from(2);
  ASSERT_TRUE(slots.Validate(second.plan).ok()) << slots.Validate(second.plan);
  slots.Apply(second.plan, second.ids);
  BuiltPlan third(3);
  third.Add(1, std::vector<int32_t>(10, 1), 60, {3})->set_block_table_from(4);
  EXPECT_TRUE(slots.Validate(third.plan).ok()) << slots.Validate(third.plan);
}

TEST(SlotTableTest, RowsPointAtTheirBlocksAndPositions) {
  SlotTable slots = Running();
  BuiltPlan built(2);
  built.Add(1, {1, 2}, 20);
  built.Add(2, {3}, 0, {9});
  const StepRows rows = slots.Apply(built.plan, built.ids);
  ASSERT_EQ(rows.count, 3);
  EXPECT_THAT(std::vector<int32_t>(rows.positions, rows.positions + 3), ElementsAre(20, 21, 0));
  EXPECT_THAT(std::vector<int64_t>(rows.slot_of_row, rows.slot_of_row + 3),
              ElementsAre(7 * 16 + 4, 7 * 16 + 5, 9 * 16));
  EXPECT_THAT(std::vector<int32_t>(rows.table_of_row, rows.table_of_row + 3), ElementsAre(1, 1, 2));
  EXPECT_EQ(rows.table_stride, 5);
  EXPECT_EQ(rows.block_tables[5], 4);
  EXPECT_EQ(rows.block_tables[6], 7);
  EXPECT_EQ(slots.computed(1), 22);
  EXPECT_EQ(slots.computed(2), 1);
}

TEST(SlotTableTest, ReferenceToATokenIsOneRow) {
  SlotTable slots = Running();
  BuiltPlan built(2);
  v1::Entry* entry = built.plan.add_entries();
  entry->set_slot(1);
  entry->set_first_position(20);
  entry->add_logits_at(0);
  entry->mutable_from()->set_plan_id(1);
  built.ids = {77};
  ASSERT_TRUE(slots.Validate(built.plan).ok()) << slots.Validate(built.plan);
  EXPECT_EQ(slots.Apply(built.plan, built.ids).count, 1);
  EXPECT_EQ(slots.computed(1), 21);
}

TEST(SlotTableTest, SlotIsReusedByStartingItAgain) {
  SlotTable slots = Running();
  BuiltPlan built(2);
  built.Start(1, 0.5F, 77)->set_index(3);
  built.Add(1, {1}, 0, {2});
  ASSERT_TRUE(slots.Validate(built.plan).ok()) << slots.Validate(built.plan);
  slots.Apply(built.plan, built.ids);
  EXPECT_EQ(slots.computed(1), 1);
  EXPECT_EQ(slots.sampling(1).temperature, 0.5F);
  EXPECT_EQ(slots.sampling(1).seed, 77U);
  EXPECT_EQ(slots.sampling(1).index, 3U);
}

TEST(SlotTableTest, ClearForgetsEverySlot) {
  SlotTable slots = Running();
  slots.Clear();
  BuiltPlan built(2);
  built.Add(1, {1}, 20);
  EXPECT_THAT(std::string(slots.Validate(built.plan).message()), HasSubstr("no plan has started"));
}

}  // namespace
}  // namespace pergola
