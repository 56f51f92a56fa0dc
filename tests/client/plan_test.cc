#include "client/plan_maker.h"

#include <algorithm>

#include "client/plan_report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

absl::StatusOr<PlanReport> Plan(const PlanOptions& options) {
  const auto shape = OpenShape(options);
  if (!shape.ok()) return shape.status();
  return MakePlan(*shape, options);
}

PlanOptions On(const std::string& model, const std::string& gpu = "") {
  PlanOptions options;
  options.model = model;
  options.gpu = gpu;
  return options;
}

TEST(MakePlanTest, TheCpuPlanFitsTheMachineOrNamesTheMissingBytes) {
  PlanOptions options = On("llama-3-8b");
  const auto unknown = Plan(options);
  ASSERT_TRUE(unknown.ok()) << unknown.status();
  options.available_memory = unknown->total_bytes();
  EXPECT_TRUE(Plan(options).ok());
  --options.available_memory;
  const absl::Status refused = Plan(options).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr(": 1 bytes are missing; "));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("a smaller KV cache (--kv-mib 1023)"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("--dtype int8"));
}

TEST(MakePlanTest, TheSuggestedKvFits) {
  PlanOptions options = On("llama-3-8b");
  options.available_memory = Plan(options)->total_bytes() - 1;
  options.kv_bytes = int64_t{1023} << 20;
  EXPECT_TRUE(Plan(options).ok());
}

TEST(MakePlanTest, WhatIsSuggestedForGpusFits) {
  PlanOptions options = On("bloom-176b", "a100-40g");
  EXPECT_THAT(std::string(Plan(options).status().message()),
              HasSubstr("more ranks (--nodes 2), or a smaller dtype (--dtype int8) would fit"));
  options.nodes = 2;
  EXPECT_TRUE(Plan(options).ok());
  options.nodes = 1;
  options.dtype = "int8";
  EXPECT_TRUE(Plan(options).ok());
}

TEST(MakePlanTest, TheChosenLayoutIsTheFastestThatFits) {
  PlanOptions options = On("bloom-176b", "h100");
  options.nodes = 2;
  const auto report = Plan(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->tensor_parallel, 8);
  EXPECT_EQ(report->pipeline_parallel, 2);
  EXPECT_EQ(report->ranks.size(), 16U);
  EXPECT_EQ(report->candidates.size(), 4U);
  for (const MemoryPlan& plan : report->ranks) EXPECT_LE(plan.total(), report->budget_bytes);
}

TEST(MakePlanTest, ALayoutAskedForIsTheOnlyOneLookedAt) {
  PlanOptions options = On("llama-3-8b", "h100");
  options.tensor_parallel = 2;
  options.pipeline_parallel = 1;
  const auto report = Plan(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->ranks.size(), 2U);
  EXPECT_EQ(report->candidates.size(), 1U);
}

TEST(MakePlanTest, TheContextIsShortenedOnAGpuTooUnlessItWasAskedFor) {
  // 141.1 GB of weights leave four GPUs of 40 GB less than one full context, with so many rows.
  PlanOptions options = On("llama-3-70b", "a100-40g");
  options.gpus_per_node = 4;
  options.kv_dtype = "f32";
  options.step_tokens = 19000;
  const auto report = Plan(options);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(report->limits.context_length, 8192);
  EXPECT_THAT(report->shortened, HasSubstr("not the model's 8192"));
  EXPECT_THAT(PlanText(*report), HasSubstr(report->shortened));
  options.context_length = 8192;
  EXPECT_EQ(Plan(options).status().code(), absl::StatusCode::kResourceExhausted);
  options.context_length = report->limits.context_length;
  EXPECT_TRUE(Plan(options).ok());
}

TEST(MakePlanTest, WrongNamesAndFlagsAreNotAQuestionOfMemory) {
  const auto code = [](const PlanOptions& options) { return Plan(options).status().code(); };
  EXPECT_EQ(code(On("no-such-model")), absl::StatusCode::kNotFound);
  EXPECT_EQ(code(On("llama-3-8b", "v100")), absl::StatusCode::kNotFound);
  PlanOptions options = On("llama-3-8b");
  options.dtype = "fp4";
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options = On("llama-3-8b");
  options.tensor_parallel = 33;
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
  options = On("llama-3-8b", "h100");
  options.length = 8193;
  EXPECT_EQ(code(options), absl::StatusCode::kInvalidArgument);
}

// Eight KV heads (and one) over ranks: a rank counts those its query heads need, no more.
TEST(MakePlanTest, TheKvOfARankIsOfTheHeadsItNeeds) {
  const auto heads = [](const char* model, int tp) {
    PlanOptions options = On(model);
    options.tensor_parallel = tp;
    const auto report = Plan(options);
    EXPECT_TRUE(report.ok()) << report.status();
    const ModelSpec& spec = report->shape.spec;
    // K and V of each layer, f16.
    const int64_t head_bytes =
        2 * spec.layers * report->limits.block_tokens * spec.head_dim * int64_t{2};
    std::string text = PlanText(*report);
    text.erase(std::remove(text.begin(), text.end(), ','), text.end());
    std::vector<int64_t> held;
    for (const MemoryPlan& plan : report->ranks) {
      held.push_back(plan.block_bytes / head_bytes);
      EXPECT_THAT(text, HasSubstr(" " + std::to_string(plan.kv_bytes()) + " "));
    }
    return held;
  };
  EXPECT_EQ(heads("llama-3-8b", 1), (std::vector<int64_t>{8}));
  EXPECT_EQ(heads("llama-3-8b", 4), (std::vector<int64_t>(4, 2)));
  EXPECT_EQ(heads("llama-3-8b", 3), (std::vector<int64_t>{3, 4, 3}));
  EXPECT_EQ(heads("llama-3-8b", 16), (std::vector<int64_t>(16, 1)));
  EXPECT_EQ(heads("starcoder-15.5b", 4), (std::vector<int64_t>(4, 1)));
}

TEST(MakePlanTest, TheVocabularyIsSharedOutOverTheRanksOfAStage) {
  PlanOptions options = On("llama-3-8b");
  options.tensor_parallel = 4;
  options.pipeline_parallel = 2;
  const auto report = Plan(options);
  ASSERT_TRUE(report.ok()) << report.status();
  const auto bytes = [&](size_t rank, WeightKind kind) {
    return report->ranks[rank].weight_bytes[static_cast<size_t>(kind)];
  };
  // 128,256 rows of 4,096 bf16.
  const int64_t quarter = int64_t{128256} / 4 * 4096 * 2;
  for (size_t rank = 0; rank < 8; ++rank) {
    EXPECT_EQ(bytes(rank, WeightKind::kEmbedding), rank < 4 ? quarter : 0);
    EXPECT_EQ(bytes(rank, WeightKind::kLmHead), rank < 4 ? 0 : quarter);
  }
}

TEST(MakePlanTest, FormatsOfTheWeightsChangeTheirBytesAndTheKv) {
  const auto plan = [](const char* dtype) {
    PlanOptions options = On("llama-3-8b");
    options.dtype = dtype;
    const auto report = Plan(options);
    EXPECT_TRUE(report.ok()) << report.status();
    return *report;
  };
  const PlanReport bf16 = plan("auto"), f32 = plan("f32"), int8 = plan("int8"), int4 = plan("int4");
  EXPECT_EQ(f32.limits.kv_dtype, DType::kF32);
  EXPECT_EQ(int8.limits.kv_dtype, DType::kF16);
  const auto attention = [](const PlanReport& report) {
    return report.ranks[0].weight_bytes[static_cast<size_t>(WeightKind::kAttention)];
  };
  const auto head = [](const PlanReport& report) {
    return report.ranks[0].weight_bytes[static_cast<size_t>(WeightKind::kLmHead)];
  };
  // Per layer 6,144 and 4,096 outputs of 4,096 inputs; of int8 eight bytes more for each output.
  const int64_t outputs = int64_t{32} * (6144 + 4096);
  EXPECT_EQ(attention(bf16), outputs * 4096 * 2);
  EXPECT_EQ(attention(f32), outputs * 4096 * 4);
  EXPECT_EQ(attention(int8), outputs * (4096 + 8));
  EXPECT_EQ(attention(int4), outputs * 4096 / 32 * 20);
  EXPECT_EQ(head(int8), head(bf16));
  EXPECT_EQ(head(int4), head(bf16));
}

TEST(MakePlanTest, Fp8IsAGpusFormat) {
  PlanOptions options = On("llama-3-8b");
  options.dtype = "fp8";
  EXPECT_THAT(std::string(Plan(options).status().message()), HasSubstr("--dtype fp8 is for GPUs"));
  options = On("llama-3-8b", "h200");
  options.dtype = "fp8";
  const auto report = Plan(options);
  ASSERT_TRUE(report.ok()) << report.status();
  // Per layer 6,144 outputs of 4,096 inputs and a scale, and 4,096 more whose inputs are cut: every
  // rank of a stage has their scales.
  int64_t bytes = 0;
  for (const MemoryPlan& rank : report->ranks) {
    bytes += rank.weight_bytes[static_cast<size_t>(WeightKind::kAttention)];
  }
  const int64_t scales = 4 * (6144 + int64_t{4096} * report->tensor_parallel);
  EXPECT_EQ(bytes, 32 * (int64_t{6144 + 4096} * 4096 + scales));
}

TEST(PlanReportTest, ACpuPlanStatesNoTimes) {
  const auto report = Plan(On("llama-3-8b"));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(PlanText(*report), Not(HasSubstr("predicted")));
  EXPECT_FALSE(PlanJson(*report).contains("steps"));
  EXPECT_EQ(PlanJson(*report)["total_bytes"], report->total_bytes());
}

TEST(PlanReportTest, PublishedTimesStandBesideTheFloor) {
  const auto report = Plan(On("bloom-176b", "a100-80g"));
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_THAT(PlanText(*report), HasSubstr("share of the floor reached"));
  EXPECT_EQ(PlanJson(*report)["published"]["times"][0]["published_token_ms"], 44.02);
  const auto other = Plan(On("bloom-176b", "h100"));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_FALSE(PlanJson(*other).contains("published"));
}

}  // namespace
}  // namespace pergola
