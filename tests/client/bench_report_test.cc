// What `pergola bench` shows, from numbers that a person can count.
#include "client/bench/report.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::Pair;

// Two addresses; 4 s; 100 tokens in 50 messages; one failure, one dropped arrival.
BenchResult Result() {
  BenchResult result;
  result.model = "tiny";
  result.plan.mode = BenchMode::kOpen;
  result.plan.rate_per_s = 2;
  result.plan.max_in_flight = 3;
  result.plan.slo.ttft_ms = 25;
  result.arrived = 8;
  result.dropped = 1;
  result.wall_s = 4;
  result.addresses.resize(2);
  BenchCounts& a = result.addresses[0];
  a.address = "a:1";
  a.sent = 4;
  a.completed = 4;
  a.good = 3;
  a.tokens = 60;
  a.messages = 30;
  for (const double ms : {10, 20, 30}) a.first_token_ms.Add(ms);
  BenchCounts& b = result.addresses[1];
  b.address = "b:2";
  b.sent = 3;
  b.completed = 2;
  b.failed = 1;
  b.good = 1;
  b.tokens = 40;
  b.messages = 20;
  b.errors[8] = 1;
  b.first_error = "RESOURCE_EXHAUSTED: full";
  b.first_token_ms.Add(40);
  b.gap_ms.Add(4, 3);
  b.gap_ms.Add(5);
  result.over_time.Add(0.05, 30);
  result.over_time.Add(3.95, 70);
  return result;
}

TEST(BenchReportTest, JsonHasEveryRateAndPercentile) {
  const auto json = nlohmann::json::parse(BenchJson(Result()));
  EXPECT_EQ(json["address"], "a:1,b:2");
  EXPECT_EQ(json["mode"], "open");
  EXPECT_EQ(json["requests"], 8);
  EXPECT_EQ(json["dropped"], 1);
  EXPECT_EQ(json["sent"], 7);
  EXPECT_EQ(json["failed"], 1);
  EXPECT_EQ(json["errors"], nlohmann::json({{"RESOURCE_EXHAUSTED", 1}}));
  EXPECT_EQ(json["tokens_per_s"], 25.0);
  EXPECT_EQ(json["messages_per_s"], 12.5);
  EXPECT_EQ(json["tokens_per_message"], 2.0);
  EXPECT_EQ(json["requests_per_s"], 1.5);
  EXPECT_EQ(json["ttft_p50_ms"], 20.0);
  EXPECT_EQ(json["ttft_p99_ms"], 40.0);
  EXPECT_EQ(json["ttft_p999_ms"], 40.0);
  EXPECT_EQ(json["inter_token_p50_ms"], 4.0);
  EXPECT_EQ(json["inter_token_p90_ms"], 5.0);
  EXPECT_EQ(json["good"], 4);
  EXPECT_EQ(json["goodput_share"], 0.5) << "dropped and failed arrivals are not good";
  EXPECT_EQ(json["goodput_per_s"], 1.0);
  EXPECT_EQ(json["slo_ttft_ms"], 25.0);
  EXPECT_TRUE(json["slo_gap_ms"].is_null());
  ASSERT_EQ(json["addresses"].size(), 2U);
  EXPECT_EQ(json["addresses"][1]["address"], "b:2");
  EXPECT_EQ(json["addresses"][1]["tokens_per_s"], 10.0);
  EXPECT_EQ(json["addresses"][0]["ttft_p50_ms"], 20.0);
  EXPECT_EQ(json["tokens_over_time"].size(), 40U);
}

TEST(BenchReportTest, NothingMeasuredIsZeroNotANumberThatIsNone) {
  const auto json = nlohmann::json::parse(BenchJson(BenchResult()));
  for (const char* name : {"tokens_per_s", "ttft_p50_ms", "tokens_per_message", "goodput_share"}) {
    EXPECT_EQ(json[name], 0.0) << name;
  }
}

TEST(BenchReportTest, TextTellsWhatWentWrongOnlyIfItDid) {
  BenchResult result = Result();
  const std::string text = BenchText(result);
  EXPECT_THAT(text, HasSubstr("1 of 7 requests failed, the first with RESOURCE_EXHAUSTED: full"));
  EXPECT_THAT(text, HasSubstr("  RESOURCE_EXHAUSTED: 1\n"));
  EXPECT_THAT(text, HasSubstr("1 of 8 arrivals dropped: 3 requests were in flight"));
  EXPECT_THAT(text, HasSubstr("50.0 % of 8 requests, 1.00 requests/s (first token within 25 ms)"));
  EXPECT_THAT(text, HasSubstr("b:2"));
  EXPECT_THAT(text, Not(HasSubstr("late")));
  EXPECT_THAT(text, Not(HasSubstr("interrupted")));
  result.interrupted = true;
  result.late = 2;
  result.max_late_ms = 31;
  EXPECT_THAT(BenchText(result), HasSubstr("2 requests sent more than 10 ms late, by up to 31.0"));
  EXPECT_THAT(BenchText(result), HasSubstr("interrupted"));
  EXPECT_THAT(BenchText(BenchResult()), Not(HasSubstr("failed")));
  EXPECT_THAT(BenchText(BenchResult()), Not(HasSubstr("goodput")));
}

TEST(TokensOverTimeTest, RatesAreTokensOverTheLengthOfTheirSpan) {
  TokensOverTime over_time;
  over_time.Add(0.0, 1);
  over_time.Add(0.05, 2);
  over_time.Add(0.15, 4);
  over_time.Add(0.25, 5);
  ASSERT_THAT(over_time.ticks, ElementsAre(3, 4, 5));
  const auto rates = over_time.Rates(2);
  ASSERT_EQ(rates.size(), 2U);
  EXPECT_DOUBLE_EQ(rates[0].first, 0.1);
  EXPECT_DOUBLE_EQ(rates[0].second, 35);
  EXPECT_DOUBLE_EQ(rates[1].first, 0.25) << "the last span is shorter";
  EXPECT_DOUBLE_EQ(rates[1].second, 50);
}

SweepResult Sweep() {
  SweepResult result;
  result.model = "tiny";
  result.plan.mode = BenchMode::kSweep;
  result.plan.sweep_contexts = {64, 512};
  SweepPoint point;
  point.context = 64;
  point.batch = 4;
  point.output_tokens = 100;
  point.fits = true;
  point.first_token_ms = 20;
  point.prefill_ms = 64;
  point.step_ms = 10;
  point.tokens_per_s = 380;
  SweepPoint refused = point;
  refused.batch = 8;
  refused.fits = false;
  refused.first_token_ms = refused.prefill_ms = refused.step_ms = refused.tokens_per_s = 0;
  refused.remark = "the server has 4 slots";
  result.points = {point, refused};
  return result;
}

TEST(SweepReportTest, TokensOfABatchShareItsTimes) {
  const auto json = nlohmann::json::parse(SweepJson(Sweep()));
  const auto& point = json["points"][0];
  EXPECT_EQ(point["ms_per_token"], 2.5);
  EXPECT_EQ(point["prefill_ms_per_token"], 0.25);
  EXPECT_EQ(point["step_ms"], 10.0);
  EXPECT_TRUE(json["points"][1]["step_ms"].is_null());
  EXPECT_EQ(json["points"][1]["remark"], "the server has 4 slots");
  EXPECT_EQ(json["largest_batches"][0]["batch"], 4);
  EXPECT_EQ(json["largest_batches"][1]["batch"], 0);
}

TEST(SweepReportTest, TextNamesWhatDidNotFit) {
  const std::string text = SweepText(Sweep());
  EXPECT_THAT(text, HasSubstr("      64      8 the server has 4 slots\n"));
  EXPECT_THAT(text, HasSubstr("largest batch that fits at context 64: 4\n"));
  EXPECT_THAT(text, HasSubstr("largest batch that fits at context 512: none\n"));
}

TEST(SweepReportTest, PlotsShowOnlyBatchesThatRanAtOnce) {
  const std::vector<NamedPlot> plots = SweepPlots(Sweep());
  ASSERT_EQ(plots.size(), 2U);
  EXPECT_EQ(plots[0].name, "sweep");
  EXPECT_TRUE(plots[0].plot.log_x);
  EXPECT_THAT(plots[0].plot.lines[0].points, ElementsAre(Pair(4, 2.5)));
  EXPECT_THAT(plots[1].plot.lines[0].points, ElementsAre(Pair(4, 10)));
  EXPECT_TRUE(plots[0].plot.lines[1].points.empty());
}

TEST(BenchReportTest, PlotsHaveTheDistributionsAndTheRates) {
  const std::vector<NamedPlot> plots = BenchPlots(Result());
  ASSERT_EQ(plots.size(), 2U);
  EXPECT_EQ(plots[0].name, "latency");
  EXPECT_THAT(plots[0].plot.lines[0].points,
              ElementsAre(Pair(10, 25), Pair(20, 50), Pair(30, 75), Pair(40, 100)));
  EXPECT_EQ(plots[1].name, "tokens");
  EXPECT_EQ(plots[1].plot.lines[0].points.size(), 40U);
}

}  // namespace
}  // namespace pergola
