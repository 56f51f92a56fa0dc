// Against transformers' own logits processors and warpers: tests/golden/sampling, made by
// scripts/goldens_sampling.py.
#include <cmath>
#include <fstream>
#include <numeric>

#include "kernels/sample.h"
#include "nlohmann/json.hpp"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

using nlohmann::json;

const json& Golden() {
  static const json golden = [] {
    std::ifstream file(PERGOLA_TEST_DATA "/golden/sampling/golden.json");
    return json::parse(file);
  }();
  return golden;
}

// The script's make_logits: SplitMix64, four 16-bit words summed, centred, in units of 2^-14.
std::vector<float> MakeLogits(uint64_t state, int64_t vocabulary) {
  std::vector<float> logits;
  for (int64_t i = 0; i < vocabulary; ++i) {
    state += 0x9E3779B97F4A7C15;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    const auto sum =
        static_cast<int64_t>((z & 0xFFFF) + (z >> 16 & 0xFFFF) + (z >> 32 & 0xFFFF) + (z >> 48));
    logits.push_back(static_cast<float>(sum - 131070) / 16384.0F);
  }
  return logits;
}

// One case, with what its row points at.
struct Case {
  explicit Case(const json& c)
      : vocabulary(c["vocabulary"]),
        logits(MakeLogits(c["seed"], vocabulary)),
        history(c["history"].get<std::vector<int32_t>>()),
        suppressed(c["suppressed"].get<std::vector<int32_t>>()),
        mask_ids(c["mask_ids"].get<std::vector<int32_t>>()) {
    for (const json& bias : c["bias"]) {
      bias_ids.push_back(bias[0]);
      biases.push_back(bias[1]);
    }
    row.logits = logits.data();
    row.temperature = c["temperature"];
    row.top_k = c["top_k"];
    row.top_p = c["top_p"];
    row.min_p = c["min_p"];
    row.typical_p = c["typical_p"];
    row.repetition_penalty = c["repetition_penalty"];
    row.presence_penalty = c["presence_penalty"];
    row.frequency_penalty = c["frequency_penalty"];
    row.no_repeat_ngram_size = c["no_repeat_ngram_size"];
    row.min_new_tokens = c["min_new_tokens"];
    row.suppressed = suppressed.data();
    row.suppressed_count = static_cast<int64_t>(suppressed.size());
    row.bias_ids = bias_ids.data();
    row.biases = biases.data();
    row.bias_count = static_cast<int64_t>(biases.size());
    row.history = history.data();
    row.history_count = static_cast<int64_t>(history.size());
    row.prompt_tokens = c["prompt_tokens"];
    row.position = static_cast<uint32_t>(history.size());
    if (!mask_ids.empty()) row.mask_ids = mask_ids.data();
    row.mask_id_count = static_cast<int64_t>(mask_ids.size());
  }

  int64_t vocabulary;
  std::vector<float> logits;
  std::vector<int32_t> history, suppressed, mask_ids, bias_ids;
  std::vector<float> biases;
  SampleRow row;
};

class SampleGoldenTest : public testing::TestWithParam<CpuTarget> {
 protected:
  std::unique_ptr<CpuStream> stream_ =
      CpuTargetSupported(GetParam()) ? MakeStream(GetParam(), 2, 1 << 20) : nullptr;
};

TEST_P(SampleGoldenTest, KeepsTheIdsThatTransformersKeeps) {
  SKIP_WITHOUT(GetParam());
  int number = 0;
  for (const json& golden : Golden()["cases"]) {
    const Case c(golden);
    EXPECT_EQ(Survivors(*stream_, c.row, c.vocabulary), golden["kept"].get<std::vector<int32_t>>())
        << "case " << number;
    ++number;
  }
  EXPECT_GE(number, 40);
}

TEST_P(SampleGoldenTest, GreedyTakesTheLargestProcessedLogit) {
  SKIP_WITHOUT(GetParam());
  for (const json& golden : Golden()["cases"]) {
    Case c(golden);
    c.row.temperature = 0;
    EXPECT_EQ(Sample(*stream_, c.row, c.vocabulary), golden["greedy"].get<int32_t>());
  }
}

TEST_P(SampleGoldenTest, LogprobsAreThoseOfTorch) {
  SKIP_WITHOUT(GetParam());
  for (const json& golden : Golden()["cases"]) {
    const Case c(golden);
    SampleTask task;
    task.row.logits = c.row.logits;
    task.target = golden["greedy"];
    task.target_top = kMaxTopLogprobs;
    SampleTasks(*stream_, &task, 1, c.vocabulary);
    ASSERT_TRUE(task.valid);
    const auto top_ids = golden["top_ids"].get<std::vector<int32_t>>();
    ASSERT_EQ(task.target_logprobs.top_count, static_cast<int32_t>(top_ids.size()));
    // One rounding to f32 of values below 32; torch's own error in f64 is far below.
    const double bound = 32 * kUnit;
    EXPECT_NEAR(task.target_logprobs.logprob, golden["greedy_logprob"].get<double>(), bound);
    for (size_t i = 0; i < top_ids.size(); ++i) {
      EXPECT_EQ(task.target_logprobs.top_ids[i], top_ids[i]);
      EXPECT_NEAR(task.target_logprobs.top_logprobs[i], golden["top_logprobs"][i].get<double>(),
                  bound);
    }
  }
}

// The value that a chi-square variable of `freedom` degrees exceeds once in a million: Wilson and
// Hilferty's cube ("The distribution of chi-square", 1931) at the normal quantile 4.7534.
double ChiSquareLimit(double freedom) {
  const double cube = 1 - 2 / (9 * freedom) + 4.7534 * std::sqrt(2 / (9 * freedom));
  return freedom * cube * cube * cube;
}

// On this machine's best target: the draws of the others are the same id for id.
TEST(SampleChiSquareTest, DrawsFollowTheProcessedProbabilities) {
  StreamOptions options;
  options.workspace_bytes = 1 << 20;
  const auto stream = CpuStream::Create(options);
  constexpr int kDraws = 4000;
  int tested = 0;
  for (const json& golden : Golden()["cases"]) {
    Case c(golden);
    const auto kept = golden["kept"].get<std::vector<int32_t>>();
    const auto probabilities = golden["probabilities"].get<std::vector<double>>();
    // Positions make the draws differ; so nothing may depend on them otherwise.
    if (probabilities.size() < 2 || c.row.suppresses()) continue;
    std::vector<int> counts(static_cast<size_t>(c.vocabulary));
    c.row.seed = 1000 + tested;
    for (uint32_t i = 0; i < kDraws; ++i) {
      c.row.position = static_cast<uint32_t>(c.history.size()) + i;
      const int32_t id = Sample(*stream, c.row, c.vocabulary);
      ASSERT_GE(id, 0);
      ++counts[id];
    }
    // Ids expected fewer than five times are pooled, as the test asks for.
    double sum = 0, rare = 0;
    int rare_count = 0, seen = 0, cells = 0;
    const auto add = [&](double expected, int count) {
      if (expected > 0) sum += (count - expected) * (count - expected) / expected;
      cells += expected > 0 ? 1 : 0;
    };
    for (size_t i = 0; i < kept.size(); ++i) {
      const double expected = probabilities[i] * kDraws;
      seen += counts[kept[i]];
      if (expected >= 5) {
        add(expected, counts[kept[i]]);
      } else {
        rare += expected;
        rare_count += counts[kept[i]];
      }
    }
    add(rare, rare_count);
    EXPECT_EQ(seen, kDraws) << "an id was drawn that is not kept";
    if (cells < 2) continue;
    EXPECT_LT(sum, ChiSquareLimit(cells - 1)) << "case " << tested << " of " << cells << " cells";
    ++tested;
  }
  EXPECT_GE(tested, 12);
}

INSTANTIATE_TEST_SUITE_P(Targets, SampleGoldenTest, testing::ValuesIn(kAllTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
