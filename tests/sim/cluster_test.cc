// The scheduler on the reference deployment, two nodes of eight GPUs, with the cost model's times
// on a virtual clock. What the model leaves out is left out here too: these are statements about
// scheduling, not about GPUs.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "model/cost_model.h"
#include "model/shape_spec.h"
#include "tests/sim/pipeline.h"

namespace pergola::sim {
namespace {

constexpr uint32_t kContext = 2048;
constexpr TimeUs kAnswerUs = 500;  // a result's way to the coordinator, beside the token's own

TimeUs Microseconds(double seconds) {
  return static_cast<TimeUs>(std::llround(seconds * 1e6));
}

// BLOOM-176B in bf16 on two nodes of eight H100, tensor parallel inside, a stage on each.
const CostModel& TwoNodes() {
  static const CostModel model = [] {
    const Cluster cluster{*FindGpu("h100"), 2, 8};
    return *CostModel::Make(*KnownShape("bloom-176b", DType::kBF16), cluster, 8, 2, DType::kF16);
  }();
  return model;
}

GroupTimes TimesOf(const CostModel& model) {
  GroupTimes times;
  times.compute = [&model](size_t stage, const PlanWork& work) {
    const StageWork asked{work.rows, work.kv_tokens, work.attended, work.logit_rows};
    return Microseconds(model.Stage(static_cast<int>(stage), asked).total());
  };
  times.hop = [&model](size_t stage, const PlanWork& work) {
    return Microseconds(model.Hop(static_cast<int>(stage), work.rows));
  };
  times.answer_us = kAnswerUs;
  return times;
}

v1::Hello ClusterHello(uint32_t slots) {
  v1::Hello hello = WideHello(2);
  hello.set_context_length(kContext);
  hello.set_slot_count(slots);
  hello.set_block_tokens(32);
  hello.set_block_count(slots * kContext / 32);
  return hello;
}

class ClusterDecodeTest : public testing::TestWithParam<uint32_t> {};

// From the second token on: the prompts are computed then.
TEST_P(ClusterDecodeTest, TakesTheTimeThatThePlanPredicts) {
  constexpr uint32_t kTokens = 200;
  Pipeline pipeline(ClusterHello(GetParam()), TimesOf(TwoNodes()));
  for (uint32_t i = 0; i < GetParam(); ++i) pipeline.Submit(16, kTokens);
  pipeline.RunUntilIdle();
  const Stream& last = *pipeline.streams.back();
  ASSERT_GT(last.tokens, 50U);
  const double step = static_cast<double>(last.last - last.first) / (last.tokens - 1) / 1e6;
  const double predicted = TwoNodes().Decode(GetParam(), 16 + kTokens / 2).step_seconds;
  std::printf("batch %u: %.2f ms, predicted %.2f ms\n", GetParam(), step * 1e3, predicted * 1e3);
  EXPECT_NEAR(step / predicted, 1, 0.05);
}

INSTANTIATE_TEST_SUITE_P(Batch, ClusterDecodeTest, testing::Values(1, 2, 8, 32, 128));

TEST(ClusterTest, KeepsBothStagesBusyWith32Streams) {
  Pipeline pipeline(ClusterHello(32), TimesOf(TwoNodes()));
  for (int i = 0; i < 32; ++i) pipeline.Submit(64, 200);
  pipeline.RunUntilIdle();
  const TimeUs to = pipeline.link->busy()[0].back().first;
  const TimeUs from = to / 4;
  std::printf("busy: %.3f and %.3f\n", pipeline.Busy(0, from, to), pipeline.Busy(1, from, to));
  EXPECT_GE(pipeline.Busy(0, from, to), 0.9);
  EXPECT_GE(pipeline.Busy(1, from, to), 0.9);
}

TEST(ClusterTest, LongPromptsDoNotHoldUpThoseWhoDecode) {
  Pipeline pipeline(ClusterHello(64), TimesOf(TwoNodes()));
  for (int i = 0; i < 32; ++i) pipeline.Submit(16, 300);
  for (int i = 0; i < 16; ++i) {
    pipeline.clock.At(1'000'000 + i * 20'000, [&] { pipeline.Submit(1900, 20); });
  }
  pipeline.RunUntilIdle();
  ASSERT_EQ(pipeline.streams.size(), 48U);
  TimeUs longest = 0;
  for (int i = 0; i < 32; ++i) longest = std::max(longest, pipeline.streams[i]->longest_gap);
  std::printf("longest gap %.1f ms\n", static_cast<double>(longest) / 1e3);
  EXPECT_LE(longest, EngineOptions().step_target_us);
}

// Lengths of a public chat load: means of the ShareGPT set as the vLLM paper states them (Kwon et
// al., SOSP 2023, section 6.1: 161 prompt and 338 output tokens), log-normal with the spread of
// their figure 11.
class ChatLengths {
 public:
  struct Lengths {
    uint32_t prompt;
    uint32_t output;
  };
  Lengths Next() {
    const uint32_t prompt = Draw(161, kContext / 2);
    return {prompt, Draw(338, kContext - prompt)};
  }

 private:
  uint32_t Draw(double mean, uint32_t most) {
    constexpr double kSigma = 1;
    std::lognormal_distribution<double> lengths(std::log(mean) - kSigma * kSigma / 2, kSigma);
    return static_cast<uint32_t>(std::clamp<double>(lengths(random_), 1, most));
  }
  std::mt19937_64 random_{20231023};
};

// Tokens per second of `rounds` times as many requests as slots; `together`: the next ones come
// when all of the last have ended, as a static batch does it.
double Goodput(uint32_t slots, int rounds, bool together) {
  Pipeline pipeline(ClusterHello(slots), TimesOf(TwoNodes()));
  ChatLengths lengths;
  for (int round = 0; round < rounds; ++round) {
    for (uint32_t i = 0; i < slots; ++i) {
      const ChatLengths::Lengths next = lengths.Next();
      pipeline.Submit(next.prompt, next.output);
    }
    if (together) pipeline.RunUntilIdle();
  }
  pipeline.RunUntilIdle();
  uint64_t tokens = 0;
  for (const auto& stream : pipeline.streams) tokens += stream->tokens;
  return static_cast<double>(tokens) / static_cast<double>(pipeline.clock.now()) * 1e6;
}

TEST(ClusterTest, GivesThreeTimesTheTokensOfStaticBatchesOnChatLengths) {
  const double continuous = Goodput(64, 12, false);
  const double fixed = Goodput(64, 12, true);
  std::printf("continuous %.0f tokens/s, static %.0f tokens/s, %.2f times\n", continuous, fixed,
              continuous / fixed);
  EXPECT_GE(continuous / fixed, 3);
}

}  // namespace
}  // namespace pergola::sim
