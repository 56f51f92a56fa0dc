#include "client/plan_maker.h"
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
