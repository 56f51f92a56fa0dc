// Whole models with activations of 16 bits on a GPU or its emulator against Hugging Face
// transformers: bf16 checkpoints of each kind of family, computed in bf16, and held and computed in
// f16.
//
// The bound is an outside judge's: twice the largest difference that 16-bit activations make in
// transformers (scripts/goldens_16bit.py says why). A token is the judge's wherever the best two
// logits lie further apart than both may move.
#include <cmath>
#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
#include "nlohmann/json.hpp"
#include "tests/worker/executor_group.h"
#include "tests/worker/golden.h"

namespace pergola {
namespace {

constexpr int64_t kBlockTokens = 16;
constexpr int64_t kBlocks = 8;

const nlohmann::json& Judged() {
  static const nlohmann::json json = [] {
    std::ifstream text(std::string(PERGOLA_TEST_DATA) + "/golden/sixteen_bit.json");
    return nlohmann::json::parse(text).at("goldens");
  }();
  return json;
}

std::vector<std::string> JudgedNames() {
  std::vector<std::string> names;
  for (const auto& [name, value] : Judged().items()) names.push_back(name);
  return names;
}

ExecutorOptions Options(WeightFormat format) {
  ExecutorOptions options;
  options.slot_count = 2;
  options.block_tokens = kBlockTokens;
  options.step_tokens = kBlocks * kBlockTokens;
  options.context_length = kBlocks * kBlockTokens;
  options.block_count = kBlocks;
  options.weights = format;
  return options;
}

// By golden and format of weights, activations and KV.
using Case = std::tuple<std::string, WeightFormat>;

class SixteenBitGoldenTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
    golden_ = LoadGolden(std::get<0>(GetParam()));
    auto checkpoint = Checkpoint::Open(golden_.checkpoint);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = std::move(checkpoint).value();
    bound_ = 2 * judged().at(WeightFormatName(format())).get<double>();
    group_ =
        std::make_unique<ExecutorGroup>(*checkpoint_, 1, 1, Options(format()), 1, Device::kCuda);
    group_->KeepLogits(true);
  }
  static WeightFormat format() { return std::get<1>(GetParam()); }
  static const nlohmann::json& judged() { return Judged().at(std::get<0>(GetParam())); }
  int64_t vocabulary() const { return checkpoint_->spec().vocabulary; }

  // Computes `ids` from `position` on, of which the logits are wanted.
  void Feed(const std::vector<int32_t>& ids, int64_t position) {
    v1::StepPlan plan;
    plan.set_plan_id(++plan_id_);
    plan.set_epoch(1);
    auto* entry = plan.add_entries();
    entry->set_first_position(static_cast<uint32_t>(position));
    if (position == 0) {
      plan.add_starts()->mutable_sampling()->set_top_p(1);
      for (uint32_t block = 0; block < kBlocks; ++block) entry->add_block_ids(block);
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      entry->add_ids(ids[i]);
      entry->add_logits_at(static_cast<uint32_t>(i));
    }
    group_->Execute(plan, ids);
  }
  // The best id of the last Feed's row.
  int32_t Best(int64_t row) {
    const absl::Span<const float> logits = group_->last().Logits(row);
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }

  Golden golden_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ExecutorGroup> group_;
  double bound_ = 0;
  uint64_t plan_id_ = 0;
};

TEST_P(SixteenBitGoldenTest, LogitsLieWithinTheJudgesRounding) {
  Feed(golden_.prompt, 0);
  double worst = 0;
  for (size_t row = 0; row < golden_.prompt.size(); ++row) {
    const absl::Span<const float> logits = group_->last().Logits(static_cast<int64_t>(row));
    for (int64_t id = 0; id < vocabulary(); ++id) {
      const double off =
          std::abs(static_cast<double>(logits[id]) - golden_.logits[row * vocabulary() + id]);
      ASSERT_LE(off, bound_) << "row " << row << " id " << id;  // false for NaN
      worst = std::max(worst, off);
    }
  }
  RecordProperty("worst_over_bound", std::to_string(worst / bound_));
}

// Each step is given the judge's tokens, so that one near tie does not hide what follows.
TEST_P(SixteenBitGoldenTest, TokensAreTheJudgesWhereTheMarginExceedsTheRounding) {
  const auto gaps = judged().at("gaps").get<std::vector<double>>();
  ASSERT_EQ(gaps.size(), golden_.greedy.size());
  Feed(golden_.prompt, 0);
  int64_t row = static_cast<int64_t>(golden_.prompt.size()) - 1;
  int64_t decided = 0;
  for (size_t i = 0; i < gaps.size(); ++i) {
    if (gaps[i] > 2 * bound_) {
      EXPECT_EQ(Best(row), golden_.greedy[i]) << "token " << i;
      ++decided;
    }
    Feed({golden_.greedy[i]}, static_cast<int64_t>(golden_.prompt.size() + i));
    row = 0;
  }
  RecordProperty("decided", std::to_string(decided) + " of " + std::to_string(gaps.size()));
}

INSTANTIATE_TEST_SUITE_P(Goldens, SixteenBitGoldenTest,
                         testing::Combine(testing::ValuesIn(JudgedNames()),
                                          testing::Values(WeightFormat::kBF16, WeightFormat::kF16)),
                         [](const testing::TestParamInfo<Case>& test) {
                           return std::get<0>(test.param) + "_" +
                                  WeightFormatName(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace pergola
