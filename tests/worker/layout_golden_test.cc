// Parallel equals single: the goldens through TP x PP ranks as threads, logits within the judge's
// bound and the judge's greedy tokens, with decodes that name the token of the plan before
// (run-ahead).
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/golden.h"
#include "tests/worker/thread_group.h"

namespace pergola {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kBlocks = 8;

ExecutorOptions Options() {
  ExecutorOptions options;
  options.slot_count = 2;
  options.block_tokens = kBlockTokens;
  options.step_tokens = 64;
  options.context_length = 128;
  options.kv_dtype = DType::kF32;
  options.kv_dtype_set = true;
  options.block_count = kBlocks;
  return options;
}

v1::StepPlan NewPlan(uint64_t plan_id) {
  v1::StepPlan plan;
  plan.set_plan_id(plan_id);
  plan.set_epoch(1);
  return plan;
}

v1::StepPlan PromptPlan(const std::vector<int32_t>& prompt, bool all_logits) {
  v1::StepPlan plan = NewPlan(1);
  plan.add_starts()->mutable_sampling()->set_top_p(1);
  auto* entry = plan.add_entries();
  for (int32_t id : prompt) entry->add_ids(id);
  for (uint32_t block = 0; block < kBlocks; ++block) entry->add_block_ids(block);
  for (size_t i = all_logits ? 0 : prompt.size() - 1; i < prompt.size(); ++i) {
    entry->add_logits_at(i);
  }
  return plan;
}

using Case = std::tuple<std::string, int, int>;

class LayoutGoldenTest : public testing::TestWithParam<Case> {};

TEST_P(LayoutGoldenTest, LogitsLieWithinTheJudgesBound) {
  const auto& [name, tp, pp] = GetParam();
  const Golden golden = LoadGolden(name);
  ThreadGroup group(golden.checkpoint, tp, pp, Options());
  const int64_t vocabulary = group.spec().vocabulary;
  group.Submit(PromptPlan(golden.prompt, true));
  ASSERT_EQ(group.Wait().entries_size(), 1);
  for (size_t row = 0; row < golden.prompt.size(); ++row) {
    const absl::Span<const float> logits = group.last_stage().Logits(static_cast<int64_t>(row));
    ASSERT_EQ(logits.size(), static_cast<size_t>(vocabulary));
    for (int64_t id = 0; id < vocabulary; ++id) {
      ASSERT_LE(std::abs(static_cast<double>(logits[id]) - golden.logits[row * vocabulary + id]),
                golden.bound)
          << "row " << row << " id " << id;
    }
  }
}

TEST_P(LayoutGoldenTest, GreedyTokensAreTheJudgesWithRunAhead) {
  const auto& [name, tp, pp] = GetParam();
  const Golden golden = LoadGolden(name);
  ThreadGroup group(golden.checkpoint, tp, pp, Options());
  group.Submit(PromptPlan(golden.prompt, false));
  const uint64_t depth = pp + 1;
  uint64_t sent = 1;
  std::vector<int32_t> tokens;
  while (tokens.size() < golden.greedy.size()) {
    while (sent < golden.greedy.size() && sent < tokens.size() + depth) {
      v1::StepPlan plan = NewPlan(++sent);
      auto* entry = plan.add_entries();
      entry->mutable_from()->set_plan_id(sent - 1);
      entry->set_first_position(golden.prompt.size() + sent - 2);
      entry->add_logits_at(0);
      group.Submit(std::move(plan));
    }
    const v1::StepResult result = group.Wait();
    ASSERT_EQ(result.plan_id(), tokens.size() + 1);
    ASSERT_EQ(result.entries_size(), 1);
    ASSERT_EQ(result.entries(0).ids_size(), 1);
    tokens.push_back(result.entries(0).ids(0));
  }
  EXPECT_EQ(tokens, golden.greedy);
}

std::string CaseName(const testing::TestParamInfo<Case>& test) {
  return std::get<0>(test.param) + "_tp" + std::to_string(std::get<1>(test.param)) + "_pp" +
         std::to_string(std::get<2>(test.param));
}

INSTANTIATE_TEST_SUITE_P(Llama, LayoutGoldenTest,
                         testing::Combine(testing::ValuesIn(GoldenNames()),
                                          testing::Values(1, 2, 3), testing::Values(1, 2, 3)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Families, LayoutGoldenTest,
                         testing::Combine(testing::ValuesIn(FamilyGoldenNames()),
                                          testing::Values(1, 2, 3), testing::Values(1, 2)),
                         CaseName);

}  // namespace
}  // namespace pergola
