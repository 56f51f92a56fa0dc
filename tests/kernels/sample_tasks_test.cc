// Log-probabilities, and rows dealt over threads.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/sample.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool SameBytes(const TokenLogprobs& a, const TokenLogprobs& b) {
  // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison): the bits are what is compared.
  return std::memcmp(&a, &b, sizeof(a)) == 0;
}

class SampleTasksTest : public testing::TestWithParam<CpuTarget> {
 protected:
  SampleTask Score(const std::vector<float>& logits, int32_t id, int top) {
    const auto vocabulary = static_cast<int64_t>(logits.size());
    const auto stream = MakeStream(GetParam(), 1, SampleWorkspaceBytes(vocabulary));
    SampleTask task;
    task.row.logits = logits.data();
    task.target = id;
    task.target_top = top;
    SampleTasks(*stream, &task, 1, vocabulary);
    return task;
  }
};

TEST_P(SampleTasksTest, LogprobsAreTheLogarithmsOfTheSoftmax) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {0, std::log(2.0F), std::log(5.0F)};
  const SampleTask task = Score(logits, 0, 2);
  ASSERT_TRUE(task.valid);
  // The logits above are rounded to f32, and the answer is.
  EXPECT_NEAR(task.target_logprobs.logprob, std::log(1.0 / 8), 4 * kUnit);
  ASSERT_EQ(task.target_logprobs.top_count, 2);
  EXPECT_EQ(task.target_logprobs.top_ids[0], 2);
  EXPECT_NEAR(task.target_logprobs.top_logprobs[0], std::log(5.0 / 8), 4 * kUnit);
  EXPECT_EQ(task.target_logprobs.top_ids[1], 1);
  EXPECT_NEAR(task.target_logprobs.top_logprobs[1], std::log(2.0 / 8), 4 * kUnit);
}

TEST_P(SampleTasksTest, LogprobsEqualTheReferenceBitForBit) {
  SKIP_WITHOUT(GetParam());
  for (int64_t vocabulary : {1, 17, 2003, 131072}) {
    for (float deviation : {0.0F, 0.01F, 3.0F, 300.0F}) {
      auto logits = RandomValues(vocabulary, 5, deviation);
      if (vocabulary > 20) logits[13] = -kInfinity;
      for (int top : {0, 1, 20}) {
        const auto id = static_cast<int32_t>(vocabulary * 2 / 3);
        const SampleTask task = Score(logits, id, top);
        ASSERT_TRUE(task.valid);
        TokenLogprobs reference;
        ASSERT_TRUE(LogprobsRef(logits.data(), vocabulary, id, top, &reference));
        EXPECT_TRUE(SameBytes(task.target_logprobs, reference))
            << vocabulary << " ids, deviation " << deviation << ", top " << top;
      }
    }
  }
}

TEST_P(SampleTasksTest, TopTiesGoToTheLowestId) {
  SKIP_WITHOUT(GetParam());
  std::vector<float> logits(50, 1.0F);
  logits[40] = 2.0F;
  const SampleTask task = Score(logits, 3, 3);
  ASSERT_EQ(task.target_logprobs.top_count, 3);
  EXPECT_EQ(task.target_logprobs.top_ids[0], 40);
  EXPECT_EQ(task.target_logprobs.top_ids[1], 0);
  EXPECT_EQ(task.target_logprobs.top_ids[2], 1);
}

TEST_P(SampleTasksTest, ForbiddenIdsHaveMinusInfinityAndAreNotAmongTheTop) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {-kInfinity, 1.0F, -kInfinity};
  const SampleTask task = Score(logits, 2, 3);
  ASSERT_TRUE(task.valid);
  EXPECT_EQ(task.target_logprobs.logprob, -kInfinity);
  EXPECT_EQ(task.target_logprobs.top_count, 1);
  EXPECT_EQ(task.target_logprobs.top_logprobs[0], 0.0F);
}

TEST_P(SampleTasksTest, BadRowsAreNotValid) {
  SKIP_WITHOUT(GetParam());
  EXPECT_FALSE(Score({1.0F, kNaN, 2.0F}, 0, 1).valid);
  EXPECT_FALSE(Score({1.0F, kInfinity}, 0, 1).valid);
  EXPECT_FALSE(Score({-kInfinity, -kInfinity}, 0, 1).valid);
}

TEST_P(SampleTasksTest, LogprobsAreOfTheUnprocessedLogits) {
  SKIP_WITHOUT(GetParam());
  const auto logits = RandomValues(60, 9);
  const std::vector<int32_t> bias_id = {11};
  const std::vector<float> bias = {50.0F};
  SampleTask task;
  task.row.logits = logits.data();
  task.row.temperature = 0.3F;
  task.row.bias_ids = bias_id.data();
  task.row.biases = bias.data();
  task.row.bias_count = 1;
  task.draw = task.logprobs = true;
  task.top = 5;
  const auto stream = MakeStream(GetParam(), 1, SampleWorkspaceBytes(60));
  SampleTasks(*stream, &task, 1, 60);
  ASSERT_TRUE(task.valid);
  EXPECT_EQ(task.id, 11);
  TokenLogprobs reference;
  ASSERT_TRUE(LogprobsRef(logits.data(), 60, 11, 5, &reference));
  EXPECT_TRUE(SameBytes(task.id_logprobs, reference));
}

TEST_P(SampleTasksTest, ThreadsAndOrderChangeNoBit) {
  SKIP_WITHOUT(GetParam());
  constexpr int64_t kVocabulary = 501, kRows = 37;
  std::vector<std::vector<float>> logits;
  const std::vector<int32_t> history = {1, 2, 3, 1, 2};
  std::vector<SampleTask> tasks(kRows);
  for (int64_t i = 0; i < kRows; ++i) {
    logits.push_back(RandomValues(kVocabulary, static_cast<uint32_t>(i), 3));
    if (i == 20) logits.back()[100] = kNaN;
  }
  for (int64_t i = 0; i < kRows; ++i) {
    SampleTask& task = tasks[i];
    task.row.logits = logits[i].data();
    task.row.temperature = static_cast<float>(i % 3);
    task.row.top_p = i % 2 == 0 ? 1 : 0.9F;
    task.row.seed = 5;
    task.row.position = static_cast<uint32_t>(i);
    task.draw = i % 5 != 0;
    task.logprobs = i % 4 == 0;
    task.top = 7;
    task.target = i % 5 == 0 ? 400 : -1;
    task.target_top = 3;
    if (i % 3 == 1) {
      task.row.history = history.data();
      task.row.history_count = 5;
      task.row.repetition_penalty = 1.2F;
    }
  }
  std::vector<SampleTask> alone = tasks;
  const int64_t bytes = SampleWorkspaceBytes(kVocabulary, 5);
  const auto one = MakeStream(GetParam(), 1, bytes);
  for (SampleTask& task : alone) SampleTasks(*one, &task, 1, kVocabulary);
  const auto three = MakeStream(GetParam(), 3, 3 * bytes);
  SampleTasks(*three, tasks.data(), kRows, kVocabulary);
  for (int64_t i = 0; i < kRows; ++i) {
    EXPECT_EQ(tasks[i].valid, i != 20) << i;
    EXPECT_EQ(tasks[i].valid, alone[i].valid) << i;
    if (!tasks[i].valid) continue;
    EXPECT_EQ(tasks[i].id, alone[i].id) << i;
    if (tasks[i].draw) {
      EXPECT_EQ(tasks[i].id, SampleRef(tasks[i].row, kVocabulary)) << i;
    }
    EXPECT_TRUE(SameBytes(tasks[i].id_logprobs, alone[i].id_logprobs)) << i;
    EXPECT_TRUE(SameBytes(tasks[i].target_logprobs, alone[i].target_logprobs)) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, SampleTasksTest, testing::ValuesIn(kAllTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
