// Parallel equals single: the goldens through TP x PP ranks as threads, logits within the judge's
// bound and the judge's greedy tokens, with decodes that name the token of the plan before
// (run-ahead).
#include <cmath>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/emulator/emulator.h"
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
  options.activation_dtype_set = true;  // f32, also on a GPU
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

// Where the ranks compute, and how GPUs exchange.
enum class Way { kCpu, kCudaHost, kCudaNccl };

using Case = std::tuple<std::string, int, int, Way>;

class LayoutGoldenTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto& [name, tp, pp, way] = GetParam();
    if (way == Way::kCpu) return;
    // NCCL wants a device for each rank; the emulator has as many as it is told.
    if (way == Way::kCudaNccl) {
      emulator::DeviceModel model = model_;
      model.count = tp * pp;
      emulator::SetDeviceModel(model);
    }
    const int wanted = way == Way::kCudaNccl ? tp * pp : 1;
    if (CudaDeviceCount() < wanted) GTEST_SKIP() << "there are no " << wanted << " CUDA devices";
  }
  void TearDown() override { emulator::SetDeviceModel(model_); }

  std::unique_ptr<ThreadGroup> MakeGroup(const std::string& checkpoint) const {
    const auto& [name, tp, pp, way] = GetParam();
    return std::make_unique<ThreadGroup>(
        checkpoint, tp, pp, Options(), way == Way::kCpu ? Device::kCpu : Device::kCuda,
        way == Way::kCudaNccl ? Collectives::kNccl : Collectives::kHost);
  }

 private:
  const emulator::DeviceModel model_ = emulator::GetDeviceModel();
};

TEST_P(LayoutGoldenTest, LogitsLieWithinTheJudgesBound) {
  const Golden golden = LoadGolden(std::get<0>(GetParam()));
  const auto group = MakeGroup(golden.checkpoint);
  const int64_t vocabulary = group->spec().vocabulary;
  group->Submit(PromptPlan(golden.prompt, true));
  ASSERT_EQ(group->Wait().entries_size(), 1);
  for (size_t row = 0; row < golden.prompt.size(); ++row) {
    const absl::Span<const float> logits = group->last_stage().Logits(static_cast<int64_t>(row));
    ASSERT_EQ(logits.size(), static_cast<size_t>(vocabulary));
    for (int64_t id = 0; id < vocabulary; ++id) {
      ASSERT_LE(std::abs(static_cast<double>(logits[id]) - golden.logits[row * vocabulary + id]),
                golden.bound)
          << "row " << row << " id " << id;
    }
  }
}

// The tokens after `prompt`, each step sent before the token of the one before it is known.
std::vector<int32_t> Greedy(ThreadGroup* group, const std::vector<int32_t>& prompt, size_t count,
                            int pp) {
  group->Submit(PromptPlan(prompt, false));
  const uint64_t depth = pp + 1;
  uint64_t sent = 1;
  std::vector<int32_t> tokens;
  while (tokens.size() < count) {
    while (sent < count && sent < tokens.size() + depth) {
      v1::StepPlan plan = NewPlan(++sent);
      auto* entry = plan.add_entries();
      entry->mutable_from()->set_plan_id(sent - 1);
      entry->set_first_position(prompt.size() + sent - 2);
      entry->add_logits_at(0);
      group->Submit(std::move(plan));
    }
    const v1::StepResult result = group->Wait();
    EXPECT_EQ(result.plan_id(), tokens.size() + 1);
    EXPECT_EQ(result.stages_size(), pp);
    if (result.entries_size() != 1 || result.entries(0).ids_size() != 1) {
      ADD_FAILURE() << result.ShortDebugString();
      break;
    }
    tokens.push_back(result.entries(0).ids(0));
  }
  return tokens;
}

TEST_P(LayoutGoldenTest, GreedyTokensAreTheJudgesWithRunAhead) {
  const Golden golden = LoadGolden(std::get<0>(GetParam()));
  const auto group = MakeGroup(golden.checkpoint);
  EXPECT_EQ(Greedy(group.get(), golden.prompt, golden.greedy.size(), std::get<2>(GetParam())),
            golden.greedy);
  // Ranks that meet on the host record nothing.
  const auto& [name, tp, pp, way] = GetParam();
  const bool records = way == Way::kCudaNccl || (way == Way::kCudaHost && tp == 1);
  EXPECT_EQ(group->last_stage().recordings(), records ? 1 : 0);
}

// The second demo model, where it is: one KV head, superblocks cut by the ranks.
TEST(Gemma270MLayoutTest, GreedyTokensOfTwoRanksAreTheJudges) {
  const char* home = std::getenv("HOME");
  const std::string path =
      std::string(home == nullptr ? "" : home) + "/.cache/pergola/gemma-3-270m-q4_k_m.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "the demo model is not at " << path;
  std::ifstream text(std::string(PERGOLA_TEST_DATA) + "/golden/gemma3_270m/golden.json");
  const auto golden = nlohmann::json::parse(text).at("cases").at(0);
  const auto want = golden.at("greedy").get<std::vector<int32_t>>();
  ThreadGroup group(path, 2, 1, Options());
  EXPECT_EQ(Greedy(&group, golden.at("prompt").get<std::vector<int32_t>>(), want.size(), 1), want);
}

std::string CaseName(const testing::TestParamInfo<Case>& test) {
  const Way way = std::get<3>(test.param);
  return TestName(std::get<0>(test.param)) + "_tp" + std::to_string(std::get<1>(test.param)) +
         "_pp" + std::to_string(std::get<2>(test.param)) +
         (way == Way::kCpu        ? ""
          : way == Way::kCudaHost ? "_cuda"
                                  : "_nccl");
}

INSTANTIATE_TEST_SUITE_P(Llama, LayoutGoldenTest,
                         testing::Combine(testing::ValuesIn(GoldenNames()),
                                          testing::Values(1, 2, 3), testing::Values(1, 2, 3),
                                          testing::Values(Way::kCpu)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Families, LayoutGoldenTest,
                         testing::Combine(testing::ValuesIn(FamilyGoldenNames()),
                                          testing::Values(1, 2, 3), testing::Values(1, 2),
                                          testing::Values(Way::kCpu)),
                         CaseName);

INSTANTIATE_TEST_SUITE_P(Gguf, LayoutGoldenTest,
                         testing::Combine(testing::ValuesIn(GgufGoldenNames()),
                                          testing::Values(1, 2, 3), testing::Values(1, 2),
                                          testing::Values(Way::kCpu)),
                         CaseName);

// On a GPU or its emulator, activations in f32.
constexpr auto kGpu = Way::kCudaHost;
INSTANTIATE_TEST_SUITE_P(CudaLlama, LayoutGoldenTest,
                         testing::Combine(testing::ValuesIn(GoldenNames()), testing::Values(1, 2),
                                          testing::Values(1, 2), testing::Values(kGpu)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(CudaFamilies, LayoutGoldenTest,
                         testing::Combine(testing::ValuesIn(FamilyGoldenNames()),
                                          testing::Values(1, 2), testing::Values(1, 2),
                                          testing::Values(kGpu)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(CudaGguf, LayoutGoldenTest,
                         testing::Combine(testing::ValuesIn(GgufGoldenNames()),
                                          testing::Values(1, 2), testing::Values(1),
                                          testing::Values(kGpu)),
                         CaseName);

// The exchange does not know the family: heads that no number of ranks shares evenly, norms after
// the branches, and a norm of the embedding stand for all.
INSTANTIATE_TEST_SUITE_P(Nccl, LayoutGoldenTest,
                         testing::Combine(testing::Values("uneven", "gemma3", "bloom"),
                                          testing::Values(1, 2, 3), testing::Values(1, 2),
                                          testing::Values(Way::kCudaNccl)),
                         CaseName);

}  // namespace
}  // namespace pergola
