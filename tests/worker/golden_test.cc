// One rank against Hugging Face transformers: logits at every prompt position and greedy tokens.
#include "tests/worker/golden.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "gtest/gtest.h"
#include "kernels/cpu_stream.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "worker/step/stage_executor.h"

namespace pergola {
namespace {

constexpr int64_t kBlockTokens = 16;

// A single-rank executor with f32 KV, as the judge's cache.
struct SingleRank {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<StageExecutor> executor;
  uint64_t plan_id = 0;
};

SingleRank Open(const std::string& path) {
  SingleRank rank;
  auto checkpoint = Checkpoint::Open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  rank.checkpoint = std::move(checkpoint).value();
  StreamOptions stream_options;
  stream_options.threads = 2;
  stream_options.workspace_bytes = 64 << 20;
  rank.stream = CpuStream::Create(stream_options);
  ExecutorOptions options;
  options.slot_count = 2;
  options.block_tokens = kBlockTokens;
  options.step_tokens = 128;
  options.context_length = 128;
  options.kv_dtype = DType::kF32;
  options.kv_dtype_set = true;
  options.block_count = 16;
  const auto layout = MakeLayout(rank.checkpoint->spec(), 1, 1, 0);
  EXPECT_TRUE(layout.ok()) << layout.status();
  auto executor =
      StageExecutor::Load(*rank.checkpoint, *layout, options, *rank.stream, nullptr, nullptr);
  EXPECT_TRUE(executor.ok()) << executor.status();
  rank.executor = std::move(executor).value();
  rank.executor->KeepLogits(true);
  return rank;
}

// Feeds `ids` at `position` to slot 0 and returns the sampled tokens, one per position if `all`,
// else of the last.
std::vector<int32_t> Feed(SingleRank& rank, const std::vector<int32_t>& ids, uint32_t position,
                          bool all) {
  v1::StepPlan plan;
  plan.set_plan_id(++rank.plan_id);
  plan.set_epoch(1);
  if (position == 0) {
    auto* start = plan.add_starts();
    start->mutable_sampling()->set_top_p(1);
  }
  auto* entry = plan.add_entries();
  entry->set_first_position(position);
  for (int32_t id : ids) entry->add_ids(id);
  if (position == 0) {
    for (uint32_t block = 0; block < 16 / 2; ++block) entry->add_block_ids(block);
  }
  for (size_t i = all ? 0 : ids.size() - 1; i < ids.size(); ++i) entry->add_logits_at(i);
  const absl::Status valid = rank.executor->Validate(plan);
  EXPECT_TRUE(valid.ok()) << valid;
  std::vector<float> hidden(ids.size() * rank.checkpoint->spec().hidden);
  std::vector<v1::EntryResult> results;
  const absl::Status status = rank.executor->Execute(plan, ids, hidden.data(), &results);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(results.size(), 1U);
  EXPECT_EQ(results[0].status(), v1::ENTRY_STATUS_OK);
  return {results[0].ids().begin(), results[0].ids().end()};
}

class GoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(GoldenTest, LogitsOfEveryPromptPositionLieWithinTheBound) {
  const Golden golden = LoadGolden(GetParam());
  SingleRank rank = Open(golden.checkpoint);
  const int64_t vocabulary = rank.checkpoint->spec().vocabulary;
  ASSERT_EQ(golden.logits.size(), golden.prompt.size() * vocabulary);
  Feed(rank, golden.prompt, 0, true);
  double worst = 0;
  for (size_t row = 0; row < golden.prompt.size(); ++row) {
    const absl::Span<const float> logits = rank.executor->Logits(static_cast<int64_t>(row));
    ASSERT_EQ(logits.size(), static_cast<size_t>(vocabulary));
    for (int64_t id = 0; id < vocabulary; ++id) {
      const double difference =
          std::abs(static_cast<double>(logits[id]) - golden.logits[row * vocabulary + id]);
      ASSERT_LE(difference, golden.bound) << "row " << row << " id " << id;  // false for NaN
      worst = std::max(worst, difference);
    }
  }
  RecordProperty("worst_over_bound", std::to_string(worst / golden.bound));
}

TEST_P(GoldenTest, GreedyTokensAreTheJudges) {
  const Golden golden = LoadGolden(GetParam());
  SingleRank rank = Open(golden.checkpoint);
  std::vector<int32_t> tokens = Feed(rank, golden.prompt, 0, false);
  while (tokens.size() < golden.greedy.size()) {
    const auto position = static_cast<uint32_t>(golden.prompt.size() + tokens.size() - 1);
    tokens.push_back(Feed(rank, {tokens.back()}, position, false).back());
  }
  EXPECT_EQ(tokens, golden.greedy);
}

INSTANTIATE_TEST_SUITE_P(Llama, GoldenTest, testing::ValuesIn(GoldenNames()),
                         [](const auto& test) { return test.param; });

INSTANTIATE_TEST_SUITE_P(Families, GoldenTest, testing::ValuesIn(FamilyGoldenNames()),
                         [](const auto& test) { return test.param; });

INSTANTIATE_TEST_SUITE_P(Gguf, GoldenTest, testing::ValuesIn(GgufGoldenNames()),
                         [](const auto& test) { return TestName(test.param); });

// The demo models, where they are.
struct DemoModel {
  std::string file, golden;
};

class DemoGoldenTest : public testing::TestWithParam<DemoModel> {};

TEST_P(DemoGoldenTest, LogitsAndGreedyTokensAreTheJudges) {
  const char* home = std::getenv("HOME");
  const std::string path =
      std::string(home == nullptr ? "" : home) + "/.cache/pergola/" + GetParam().file;
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "the demo model is not at " << path;
  std::ifstream text(std::string(PERGOLA_TEST_DATA) + "/golden/" + GetParam().golden +
                     "/golden.json");
  const auto json = nlohmann::json::parse(text);
  for (const auto& one : json.at("cases")) {
    SingleRank rank = Open(path);
    const auto prompt = one.at("prompt").get<std::vector<int32_t>>();
    const auto greedy = one.at("greedy").get<std::vector<int32_t>>();
    std::vector<int32_t> tokens = Feed(rank, prompt, 0, false);
    const absl::Span<const float> logits = rank.executor->Logits(0);
    for (const auto& [id, value] : one.at("logits").items()) {
      ASSERT_LE(std::abs(logits[std::stoul(id)] - value.get<double>()),
                one.at("bound").get<double>())
          << "id " << id;
    }
    while (tokens.size() < greedy.size()) {
      const auto position = static_cast<uint32_t>(prompt.size() + tokens.size() - 1);
      tokens.push_back(Feed(rank, {tokens.back()}, position, false).back());
    }
    EXPECT_EQ(tokens, greedy);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, DemoGoldenTest,
                         testing::Values(DemoModel{"SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"},
                                         DemoModel{"gemma-3-270m-q4_k_m.gguf", "gemma3_270m"}),
                         [](const auto& test) { return test.param.golden; });

}  // namespace
}  // namespace pergola
