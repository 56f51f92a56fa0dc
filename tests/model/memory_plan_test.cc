#include "model/memory_plan.h"

#include <algorithm>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/packed_size.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

ShapeSpec Known(const std::string& name, DType dtype = DType::kBF16) {
  auto shape = KnownShape(name, dtype);
  EXPECT_TRUE(shape.ok()) << shape.status();
  return *std::move(shape);
}

std::vector<RankLayout> Ranks(const ShapeSpec& shape, int tp, int pp) {
  auto ranks = GroupLayouts(shape.spec, tp, pp);
  EXPECT_TRUE(ranks.ok()) << ranks.status();
  return *std::move(ranks);
}

MemoryLimits Limits(int64_t context = 2048, int64_t blocks = 100) {
  MemoryLimits limits;
  limits.context_length = context;
  limits.block_count = blocks;
  return limits;
}

// huggingface.co/bigscience/bloom, model card: 176,247,271,424 parameters. The Llama counts are the
// safetensors totals on their pages; StarCoder's is the sum of its config's shapes by hand.
TEST(KnownShapeTest, CountsEveryParameter) {
  EXPECT_EQ(Known("bloom-176b").ParameterCount(), 176'247'271'424);
  EXPECT_EQ(Known("starcoder-15.5b").ParameterCount(), 15'517'456'384);
  EXPECT_EQ(Known("llama-3-8b").ParameterCount(), 8'030'261'248);
  EXPECT_EQ(Known("llama-3-70b").ParameterCount(), 70'553'706'496);
}

TEST(KnownShapeTest, AnUnknownNameIsAnsweredWithTheKnownOnes) {
  const auto shape = KnownShape("bloom", DType::kBF16);
  EXPECT_EQ(shape.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(shape.status().message()),
              HasSubstr("known are bloom-176b, starcoder-15.5b, llama-3-8b, llama-3-70b"));
}

TEST(KnownShapeTest, EveryShapeTakesEveryBlockDType) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const ShapeSpec shape = Known("starcoder-15.5b", dtype);
    EXPECT_EQ(shape.MatrixDTypes(), std::string(DTypeName(dtype)));
    EXPECT_EQ(shape.AllMatricesAreF32(), dtype == DType::kF32);
  }
}

TEST(KnownShapeTest, RowsThatAreNotWholeBlocksAreRefused) {
  ShapeSpec shape = Known("llama-3-8b");
  shape.weights[0].shape = {10, 33};
  const auto quantised = WithMatrixDType(shape, DType::kQ8_0);
  EXPECT_THAT(std::string(quantised.status().message()),
              HasSubstr("a matrix of 10 x 33 cannot be q8_0: rows are whole blocks of 32 values"));
}

// Weights of all ranks together are the parameters, and what is copied on purpose: norms and
// learned positions on every rank of a stage, a tied embedding at both ends, KV heads that two
// ranks need.
TEST(MemoryPlanTest, OneRankHoldsExactlyTheParameters) {
  for (const char* name : {"bloom-176b", "starcoder-15.5b", "llama-3-8b", "llama-3-70b"}) {
    const ShapeSpec shape = Known(name, DType::kF32);
    const MemoryPlan plan = PlanRank(shape, Ranks(shape, 1, 1)[0], Limits());
    // All of these sizes are whole panels.
    EXPECT_EQ(plan.weights(), 4 * shape.ParameterCount()) << name;
  }
}

TEST(MemoryPlanTest, RanksOfALayoutHoldEveryWeightOnceButForWhatIsCopied) {
  const ShapeSpec shape = Known("llama-3-70b", DType::kF32);
  for (const auto& [tp, pp] : {std::pair(8, 1), std::pair(4, 4), std::pair(8, 2)}) {
    int64_t total = 0;
    for (const RankLayout& layout : Ranks(shape, tp, pp)) {
      total += PlanRank(shape, layout, Limits()).weights();
    }
    const int64_t norms = 4 * shape.spec.hidden * (2 * shape.spec.layers + 1);
    EXPECT_EQ(total, 4 * shape.ParameterCount() + (tp - 1) * norms) << tp << " x " << pp;
  }
}

TEST(MemoryPlanTest, ATiedEmbeddingStandsAtBothEnds) {
  const ShapeSpec shape = Known("bloom-176b");
  const auto ranks = Ranks(shape, 8, 2);
  const auto embedding = static_cast<size_t>(WeightKind::kEmbedding);
  const int64_t slice = 2 * 250880 / 8 * 14336;
  EXPECT_EQ(PlanRank(shape, ranks[0], Limits()).weight_bytes[embedding], slice);
  EXPECT_EQ(PlanRank(shape, ranks[15], Limits()).weight_bytes[embedding], slice);
  const auto one = Ranks(shape, 8, 1);
  EXPECT_EQ(PlanRank(shape, one[3], Limits()).weight_bytes[embedding], slice);
}

TEST(MemoryPlanTest, AddsUpToTheByte) {
  const ShapeSpec shape = Known("bloom-176b");
  MemoryLimits limits = Limits();
  limits.peer_bytes = 12345;
  for (const RankLayout& layout : Ranks(shape, 8, 2)) {
    const MemoryPlan plan = PlanRank(shape, layout, limits);
    int64_t weights = 0;
    for (const int64_t bytes : plan.weight_bytes) weights += bytes;
    EXPECT_EQ(plan.total(), weights + plan.kv_bytes() + plan.decoder_bytes + plan.residual_bytes +
                                plan.table_bytes + plan.logit_bytes + plan.peer_bytes);
    EXPECT_EQ(plan.kv_bytes(), 100 * 2 * layout.layers.size() * 14 * 32 * 128 * 2);
    EXPECT_EQ(plan.peer_bytes, 12345);
    EXPECT_EQ(plan.logit_bytes > 0, layout.last_stage());
  }
}

TEST(MemoryPlanTest, OnAGpuThePaddingBetweenPiecesIsCounted) {
  const ShapeSpec shape = Known("bloom-176b");
  MemoryLimits limits = Limits();
  limits.on_gpu = true;
  limits.op_workspace_bytes = 1001;
  for (const RankLayout& layout : Ranks(shape, 8, 2)) {
    limits.peer_bytes = 256;
    const MemoryPlan plan = PlanRank(shape, layout, limits);
    EXPECT_EQ(plan.total(), plan.weights() + plan.kv_bytes() + plan.workspace_bytes() +
                                plan.table_bytes + plan.logit_bytes + plan.peer_bytes +
                                plan.padding());
    // Pieces begin and end at multiples of it.
    EXPECT_EQ(plan.total() % 256, 0);
    EXPECT_GE(plan.padding(), 1024 - 1001);
    EXPECT_THAT(plan.ToString(), HasSubstr(" + padding 0."));
    limits.peer_bytes = 257;
    EXPECT_EQ(PlanRank(shape, layout, limits).padding(), plan.padding() + 255);
    limits.block_count += 1;
  }
}

TEST(MemoryPlanTest, TheKvOfAGpuFitsWithItsPadding) {
  MemoryPlan plan;
  plan.on_gpu = true;
  plan.block_bytes = 100;
  for (const int64_t budget : {256, 300, 500, 511, 512, 767}) {
    plan.block_count = LargestBlockCount({plan}, budget);
    EXPECT_LE(plan.total(), budget);
    ++plan.block_count;
    EXPECT_GT(plan.total(), budget);
  }
}

TEST(MemoryPlanTest, StagingIsBoundedButForMatricesThatAreCopiedWhole) {
  const ShapeSpec shape = Known("bloom-176b");
  MemoryLimits limits = Limits();
  limits.on_gpu = true;
  const RankLayout layout = Ranks(shape, 8, 2)[0];
  EXPECT_EQ(PlanRank(shape, layout, limits).staging_bytes, 3 * kStagingBytes);
  // The scales of an int8 matrix lie behind its rows.
  const auto int8 = WithWeightFormat(shape, WeightFormat::kInt8);
  ASSERT_TRUE(int8.ok()) << int8.status();
  const RankLayout alone = Ranks(shape, 1, 1)[0];
  EXPECT_EQ(PlanRank(*int8, alone, limits).staging_bytes, 3 * (int64_t{57344} * 14336 + 57344 * 4));
}

TEST(MemoryPlanTest, OneKvHeadIsOnEveryRankThatNeedsIt) {
  const ShapeSpec shape = Known("starcoder-15.5b");
  for (const RankLayout& layout : Ranks(shape, 8, 1)) {
    EXPECT_EQ(KvBlockBytes(shape.spec, layout, 32, DType::kF16), 2 * 40 * 1 * 32 * 128 * 2);
  }
}

TEST(MemoryPlanTest, GrowsWithEveryLimit) {
  const ShapeSpec shape = Known("llama-3-8b");
  const RankLayout layout = Ranks(shape, 2, 1)[1];
  const int64_t base = PlanRank(shape, layout, Limits()).total();
  const auto grown = [&](auto change) {
    MemoryLimits limits = Limits();
    change(&limits);
    return PlanRank(shape, layout, limits).total();
  };
  EXPECT_GT(grown([](MemoryLimits* l) { l->slot_count = 65; }), base);
  EXPECT_GT(grown([](MemoryLimits* l) { l->step_tokens = 513; }), base);
  EXPECT_GT(grown([](MemoryLimits* l) { l->context_length = 2049; }), base);
  EXPECT_GT(grown([](MemoryLimits* l) { l->block_count = 101; }), base);
  EXPECT_GT(grown([](MemoryLimits* l) { l->kv_dtype = DType::kF32; }), base);
  EXPECT_GT(grown([](MemoryLimits* l) { l->block_tokens = 64; }), base);
  EXPECT_LT(grown([](MemoryLimits* l) { l->activation_dtype = DType::kBF16; }), base);
}

TEST(MemoryPlanTest, MoreRanksTakeLessEach) {
  const ShapeSpec shape = Known("llama-3-70b");
  int64_t before = INT64_MAX;
  for (const int tp : {1, 2, 4, 8}) {
    const int64_t bytes = PlanRank(shape, Ranks(shape, tp, 1)[0], Limits()).total();
    EXPECT_LT(bytes, before) << "TP " << tp;
    before = bytes;
  }
}

TEST(MemoryPlanTest, AsManyRanksAsHeadsAndAsManyStagesAsLayersArePlanned) {
  const ShapeSpec shape = Known("llama-3-8b");
  for (const auto& [tp, pp] : {std::pair(32, 1), std::pair(1, 32), std::pair(3, 5)}) {
    int64_t kv_heads = 0;
    for (const RankLayout& layout : Ranks(shape, tp, pp)) {
      const MemoryPlan plan = PlanRank(shape, layout, Limits());
      EXPECT_GT(plan.weights(), 0);
      EXPECT_GT(plan.block_bytes, 0);
      if (layout.stage == 0) kv_heads += layout.kv_heads.size();
    }
    EXPECT_GE(kv_heads, 8);
  }
  EXPECT_EQ(GroupLayouts(shape.spec, 33, 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GroupLayouts(shape.spec, 1, 33).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GroupLayouts(shape.spec, 0, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(LargestBlockCountTest, TakesAllThatFitsAndNotAByteMore) {
  const ShapeSpec shape = Known("bloom-176b");
  const int64_t budget = 80'000'000'000;
  std::vector<MemoryPlan> ranks;
  for (const RankLayout& layout : Ranks(shape, 8, 1)) {
    ranks.push_back(PlanRank(shape, layout, Limits()));
  }
  const int64_t count = LargestBlockCount(ranks, budget);
  ASSERT_GT(count, 0);
  int64_t fullest = 0;
  int64_t block = 0;
  for (const MemoryPlan& plan : ranks) {
    fullest = std::max(fullest, plan.fixed() + count * plan.block_bytes);
    block = std::max(block, plan.block_bytes);
  }
  EXPECT_LE(fullest, budget);
  EXPECT_GT(fullest + block, budget);
  EXPECT_LT(LargestBlockCount(ranks, 1'000'000'000), 0);
}

KvRequest Request() {
  KvRequest request;
  request.slot_count = 4;
  request.model_context = 100;
  request.block_tokens = 16;
  request.block_bytes = 1000;
  return request;
}

TEST(PlanKvTest, AllSlotsGetAFullContextIfThatIsLittle) {
  const auto plan = PlanKv(Request());
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->block_count, 4 * 7);
  EXPECT_EQ(plan->context_length, 100);
  EXPECT_EQ(plan->shortened, "");
}

TEST(PlanKvTest, DefaultIsOneGiBAtMost) {
  KvRequest request = Request();
  request.block_bytes = 64 << 20;
  request.slot_count = 100;
  EXPECT_EQ(PlanKv(request)->block_count, 16);
}

TEST(PlanKvTest, DefaultShortensTheContextToWhatItHolds) {
  KvRequest request = Request();
  request.block_bytes = 400 << 20;
  const auto plan = PlanKv(request);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->block_count, 2);
  EXPECT_EQ(plan->context_length, 32);
  EXPECT_EQ(plan->shortened,
            "the context served is 32 tokens, not the model's 100: the KV cache of 838860800 bytes "
            "holds no more (one full context takes 2936012800)");
}

TEST(PlanKvTest, DefaultHoldsOneBlockHoweverLarge) {
  KvRequest request = Request();
  request.block_bytes = int64_t{3} << 30;
  EXPECT_EQ(PlanKv(request)->block_count, 1);
  EXPECT_EQ(PlanKv(request)->context_length, 16);
}

TEST(PlanKvTest, AContextAskedForGetsItsKvBeyondTheDefault) {
  KvRequest request = Request();
  request.block_bytes = int64_t{1} << 30;
  request.context_length = 100;
  EXPECT_EQ(PlanKv(request)->block_count, 7);
  EXPECT_EQ(PlanKv(request)->context_length, 100);
}

TEST(PlanKvTest, StatedBytesAreRoundedDownToBlocks) {
  KvRequest request = Request();
  request.kv_bytes = 9999;
  EXPECT_EQ(PlanKv(request)->block_count, 9);
  EXPECT_EQ(PlanKv(request)->context_length, 100);
}

TEST(PlanKvTest, StatedBytesAloneShortenTheContext) {
  KvRequest request = Request();
  request.kv_bytes = 6999;
  EXPECT_EQ(PlanKv(request)->block_count, 6);
  EXPECT_EQ(PlanKv(request)->context_length, 96);
}

TEST(PlanKvTest, StatedBytesThatDoNotHoldTheStatedContextAreRefusedWithNumbers) {
  KvRequest request = Request();
  request.kv_bytes = 6999;
  request.context_length = 100;
  EXPECT_EQ(PlanKv(request).status().message(),
            "the KV cache holds 6 blocks of 16 tokens (1000 bytes each); one sequence of the full "
            "context of 100 tokens takes 7 blocks, 7000 bytes");
  request.context_length = 96;
  EXPECT_TRUE(PlanKv(request).ok());
}

TEST(PlanKvTest, LessThanOneBlockIsRefused) {
  KvRequest request = Request();
  request.kv_bytes = 999;
  EXPECT_EQ(PlanKv(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(PlanKvTest, MoreBlocksThanAnInt32IsRefused) {
  KvRequest request = Request();
  request.block_count = int64_t{1} << 31;
  EXPECT_EQ(PlanKv(request).status().message(),
            "the KV cache has 2147483648 blocks; the most is 2147483647");
}

TEST(PlanKvTest, A128KContextOfAnEightBillionModelIsServedShorterByDefault) {
  ShapeSpec shape = Known("llama-3-8b");
  KvRequest request;
  request.slot_count = 64;
  request.block_tokens = 32;
  request.model_context = 131072;
  request.block_bytes = LargestBlockBytes(shape.spec, Ranks(shape, 1, 1), 32, DType::kF16);
  const auto plan = PlanKv(request);
  ASSERT_TRUE(plan.ok()) << plan.status();
  // 128 KiB a token: 8192 of them in 1 GiB.
  EXPECT_EQ(plan->context_length, 8192);
  EXPECT_THAT(plan->shortened, HasSubstr("not the model's 131072"));
}

TEST(CheckFitsTest, SaysEachPartAndWhatIsMissing) {
  MemoryPlan plan;
  plan.weight_bytes[0] = 10 << 20;
  plan.block_bytes = 1 << 20;
  plan.block_count = 20;
  plan.decoder_bytes = 3 << 20;
  plan.table_bytes = 1 << 18;
  plan.logit_bytes = 1 << 18;
  EXPECT_EQ(plan.ToString(),
            "weights 10.0 MiB + KV 20.0 MiB + workspaces 3.0 MiB + tables 0.2 MiB + logits 0.2 MiB "
            "= 33.5 MiB");
  EXPECT_TRUE(CheckFits(plan, plan.total()).ok());
  EXPECT_TRUE(CheckFits(plan, 0).ok());
  const absl::Status status = CheckFits(plan, 33 << 20);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("= 33.5 MiB, and 33.0 MiB are available, 524288 bytes too few; --kv-mib 19 "
                        "or less, or 2 times as many ranks (--tp, --pp), or a --dtype that takes "
                        "at most 95 % of the weights' bytes"));
  EXPECT_EQ(Remedies(plan, 5 << 20), "20 times as many ranks (--tp, --pp)");
  EXPECT_THAT(Remedies(plan, 1 << 20), HasSubstr("no layout of this model would do"));
  plan.peer_bytes = 1 << 20;
  EXPECT_THAT(plan.ToString(), HasSubstr("+ peer buffers 1.0 MiB = 34.5 MiB"));
}

TEST(PackedSizeTest, PadsRowsToPanelsAndColumnsToBlocks) {
  EXPECT_EQ(PackedMatrixBytes(DType::kF16, 33, 10, 0), 64 * 10 * 2);
  EXPECT_EQ(PackedMatrixBytes(DType::kBF16, 32, 11, 0), 32 * 12 * 2);
  EXPECT_EQ(PackedMatrixBytes(DType::kQ4_0, 32, 33, 31), 32 * 2 * 18);
}

}  // namespace
}  // namespace pergola
