#include "model/cost_model.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

ShapeSpec Known(const std::string& name, DType dtype = DType::kBF16) {
  auto shape = KnownShape(name, dtype);
  EXPECT_TRUE(shape.ok()) << shape.status();
  return *std::move(shape);
}

Cluster Of(const std::string& gpu, int nodes, int gpus = 8) {
  auto found = FindGpu(gpu);
  EXPECT_TRUE(found.ok()) << found.status();
  return Cluster{*found, nodes, gpus};
}

CostModel Model(const ShapeSpec& shape, const Cluster& cluster, int tp, int pp) {
  auto model = CostModel::Make(shape, cluster, tp, pp, DType::kF16);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

TEST(FindGpuTest, AnUnknownNameIsAnsweredWithTheKnownOnes) {
  const auto gpu = FindGpu("v100");
  EXPECT_EQ(gpu.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(gpu.status().message(),
            "'v100' is no known GPU; known are h100, h200, a100-40g, a100-80g");
}

TEST(AllReduceTest, OneRankTakesNothingAndMoreBytesTakeLonger) {
  const GpuSpec gpu = *FindGpu("h100");
  EXPECT_EQ(AllReduceSeconds(gpu, 1, 1e9), 0);
  double before = 0;
  for (double bytes = 1; bytes < 1e10; bytes *= 4) {
    const double seconds = AllReduceSeconds(gpu, 8, bytes);
    EXPECT_GT(seconds, before);
    before = seconds;
  }
}

TEST(AllReduceTest, LargeMessagesApproachTheRingsBandwidth) {
  const GpuSpec gpu = *FindGpu("a100-80g");
  // 2 (p - 1) / p of the bytes pass each link; 10 GB make latency nothing.
  EXPECT_NEAR(AllReduceSeconds(gpu, 8, 1e10), 2 * 7.0 / 8 * 1e10 / 300e9, 1e-4);
}

TEST(AllReduceTest, SmallMessagesCostTheirStartAndOneStep) {
  EXPECT_NEAR(AllReduceSeconds(*FindGpu("h100"), 8, 1), 3.6e-6 + 0.47e-6, 1e-9);
}

TEST(CostModelTest, BatchOneReadsEveryWeightOnce) {
  const ShapeSpec shape = Known("bloom-176b");
  const DecodeCost cost = Model(shape, Of("a100-80g", 1), 8, 1).Decode(1, 1);
  // All but norms, biases: 12 h^2 a layer and the tied head, 2 bytes each, over 8 GPUs.
  const double values = 70 * 12.0 * 14336 * 14336 + 250880.0 * 14336;
  EXPECT_NEAR(cost.slowest.matrices, 2 * values / 8 / 2.039e12, 1e-6);
  EXPECT_EQ(cost.bubble, 0);
  EXPECT_EQ(cost.hop_seconds, 0);
  EXPECT_NEAR(cost.step_seconds, cost.slowest.total(), 1e-12);
}

TEST(CostModelTest, ALargePromptIsBoundByTheFlopRate) {
  const ShapeSpec shape = Known("llama-3-70b");
  const CostModel model = Model(shape, Of("h100", 1), 8, 1);
  StageWork work;
  work.rows = 4096;
  // Weights of the layers: 2 FLOP for each value and row.
  const double values = 80.0 * (8192.0 * (8192 * 2 + 1024 * 2) + 3.0 * 8192 * 28672);
  EXPECT_NEAR(model.Stage(0, work).matrices, 2 * values * 4096 / 8 / 989.5e12, 1e-4);
}

TEST(CostModelTest, CachedTokensCostTheirBytes) {
  const ShapeSpec shape = Known("llama-3-8b");
  const CostModel model = Model(shape, Of("h200", 1), 8, 1);
  StageWork work;
  work.rows = 1;
  work.kv_tokens = 1'000'000;
  work.attended = 1'000'000;
  // One KV head a rank: K and V, 32 layers, 128 values of 2 bytes.
  EXPECT_NEAR(model.Stage(0, work).kv, 1e6 * 2 * 32 * 128 * 2 / 4.8e12, 1e-9);
}

TEST(CostModelTest, StepsGrowAndTokensGetCheaperWithTheBatch) {
  for (const int pp : {1, 2}) {
    const CostModel model = Model(Known("bloom-176b"), Of("h100", 2), 8, pp);
    double step = 0;
    double token = 1e9;
    for (int64_t batch = 1; batch <= 512; batch *= 2) {
      const DecodeCost cost = model.Decode(batch, 1024);
      EXPECT_GE(cost.step_seconds, step) << "batch " << batch;
      EXPECT_LT(cost.token_seconds(), token) << "batch " << batch;
      step = cost.step_seconds;
      token = cost.token_seconds();
    }
  }
}

TEST(CostModelTest, MoreRanksOfAStageAreFasterAndLongerSequencesSlower) {
  const ShapeSpec shape = Known("llama-3-70b");
  double before = 1e9;
  for (const int tp : {1, 2, 4, 8}) {
    const double step = Model(shape, Of("h100", 1), tp, 1).Decode(16, 1000).step_seconds;
    EXPECT_LT(step, before) << "TP " << tp;
    before = step;
  }
  const CostModel model = Model(shape, Of("h100", 1), 8, 1);
  EXPECT_LT(model.Decode(16, 1000).step_seconds, model.Decode(16, 2000).step_seconds);
}

TEST(CostModelTest, OneSequenceLeavesAllStagesButOneIdle) {
  const CostModel model = Model(Known("bloom-176b"), Of("h100", 2), 8, 2);
  const DecodeCost cost = model.Decode(1, 100);
  EXPECT_EQ(cost.micro_batches, 1);
  // Half, and what the hops add.
  EXPECT_GT(cost.bubble, 0.5);
  EXPECT_LT(cost.bubble, 0.52);
}

TEST(CostModelTest, MicroBatchesFillThePipeline) {
  const CostModel model = Model(Known("bloom-176b"), Of("h100", 2), 8, 2);
  const DecodeCost cost = model.Decode(64, 1000);
  EXPECT_GE(cost.micro_batches, 2);
  EXPECT_GE(cost.bubble, 0);
  EXPECT_LT(cost.bubble, 0.1);
  // A token waits for every micro-batch of the slowest stage.
  EXPECT_GE(cost.step_seconds,
            static_cast<double>(cost.micro_batches) * cost.slowest.total() * (1 - 1e-12));
}

TEST(CostModelTest, HopsAcrossNodesTakeLongerThanWithin) {
  const GpuSpec gpu = *FindGpu("h100");
  EXPECT_GT(HopSeconds(gpu, true, 1e6), HopSeconds(gpu, false, 1e6));
  const ShapeSpec shape = Known("llama-3-70b");
  EXPECT_GT(Model(shape, Of("h100", 2, 4), 4, 2).Decode(1, 1).hop_seconds,
            Model(shape, Of("h100", 1, 8), 4, 2).Decode(1, 1).hop_seconds);
}

TEST(CostModelTest, SmallerWeightsTakeLessTimeAndNotTheEmbeddingsTable) {
  const Cluster cluster = Of("h100", 1);
  const double bf16 = Model(Known("llama-3-8b"), cluster, 1, 1).Decode(1, 1).slowest.matrices;
  const double q4 =
      Model(Known("llama-3-8b", DType::kQ4_0), cluster, 1, 1).Decode(1, 1).slowest.matrices;
  EXPECT_NEAR(q4 / bf16, 18.0 / 32 / 2, 1e-9);
  // 8.03e9 values less the embedding's 128256 * 4096 and the norms.
  EXPECT_NEAR(bf16, 2 * (8030261248.0 - 128256.0 * 4096 - 65 * 4096) / 3.35e12, 1e-9);
}

TEST(CostModelTest, LayoutsThatLeaveANodeOrTheClusterAreRefused) {
  const ShapeSpec shape = Known("llama-3-8b");
  const Cluster cluster = Of("h100", 2);
  const auto make = [&](int tp, int pp) {
    return std::string(CostModel::Make(shape, cluster, tp, pp, DType::kF16).status().message());
  };
  EXPECT_THAT(make(16, 1), HasSubstr("tensor parallel is 16; it must divide the 8 GPUs"));
  EXPECT_THAT(make(3, 1), HasSubstr("must divide"));
  EXPECT_THAT(make(0, 1), HasSubstr("tensor parallel is 0"));
  EXPECT_THAT(make(8, 3), HasSubstr("is more than the 16 GPUs"));
  EXPECT_THAT(make(8, 0), HasSubstr("pipeline parallel 0"));
  EXPECT_EQ(make(8, 2), "");
}

TEST(PublishedRunTest, DeepSpeedOnBloomReachesAShareOfTheFloorBelowOne) {
  const Cluster cluster = Of("a100-80g", 1);
  const PublishedRun run = FindPublishedRun("bloom-176b", cluster);
  ASSERT_FALSE(run.times.empty());
  EXPECT_EQ(run.times.front().batch, 1);
  EXPECT_EQ(run.times.front().token_ms, 44.02);
  EXPECT_EQ(run.times.back().batch, 128);
  EXPECT_EQ(run.times.back().token_ms, 0.69);
  const CostModel model = Model(Known("bloom-176b"), cluster, 8, 1);
  for (const PublishedTime& time : run.times) {
    // A floor above a measurement is no floor; one far below explains nothing.
    const double share = model.Decode(time.batch, run.length).token_seconds() * 1e3 / time.token_ms;
    EXPECT_LT(share, 1) << "batch " << time.batch;
    EXPECT_GT(share, 0.25) << "batch " << time.batch;
  }
}

TEST(PublishedRunTest, NothingIsPublishedOfOtherMachinesAndModels) {
  EXPECT_TRUE(FindPublishedRun("bloom-176b", Of("h100", 1)).times.empty());
  EXPECT_TRUE(FindPublishedRun("bloom-176b", Of("a100-80g", 2)).times.empty());
  EXPECT_TRUE(FindPublishedRun("llama-3-70b", Of("a100-80g", 1)).times.empty());
}

}  // namespace
}  // namespace pergola
