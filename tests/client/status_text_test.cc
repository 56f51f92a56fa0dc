#include "client/status_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

namespace pergola {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A status whose every text that a peer chose is `text`.
v1::StatusResponse SaidByAPeer(const std::string& text) {
  v1::StatusResponse status;
  status.set_model(text);
  v1::GroupStatus* group = status.add_groups();
  group->set_name(text);
  group->set_state(v1::GROUP_STATE_LOADING);
  group->mutable_progress()->set_phase(text);
  group->mutable_progress()->set_bytes_total(1);
  group->mutable_layout()->add_stages()->set_host(text);
  group->set_last_fault(text);
  (*status.mutable_refusals())[text] = 1;
  return status;
}

size_t CountOf(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(StatusTextTest, EscapesEverythingAPeerSaysThatATerminalWouldObey) {
  // An escape sequence, a line feed, DEL, and CSI as one character of Latin-1 in UTF-8.
  const std::string text =
      StatusText(SaidByAPeer("a\x1b[2J\nb\x7f\xc2\x9b"
                             "31m"));
  for (const char c : text) {
    EXPECT_TRUE(c == '\n' || (c >= 0x20 && c < 0x7F)) << static_cast<int>(c);
  }
  EXPECT_EQ(CountOf(text, "a\\x1b[2J\\x0ab\\x7f\\xc2\\x9b31m"), 6U) << text;
  // model, six lines of the coordinator, group, its blocks, its stage, its fault.
  const std::string plain = StatusText(SaidByAPeer("a"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'),
            std::count(plain.begin(), plain.end(), '\n'));
}

TEST(StatusTextTest, ABackslashOfAPeerIsNotTakenForAnEscape) {
  EXPECT_THAT(StatusText(SaidByAPeer("a\\x1b")), HasSubstr("group a\\\\x1b: "));
}

TEST(StatusTextTest, CutsNamesAndFaultsThatAreTooLong) {
  const std::string text = StatusText(SaidByAPeer(std::string(1 << 20, 'x')));
  EXPECT_LT(text.size(), 10'000U);
  EXPECT_THAT(text, HasSubstr("group " + std::string(256, 'x') + "...: "));
  EXPECT_THAT(StatusText(SaidByAPeer(std::string(256, 'x'))), Not(HasSubstr("...")));
}

TEST(StatusTextTest, TellsPrefixHitsPausesAndRefusalsByReason) {
  v1::StatusResponse status;
  status.set_prefix_hit_tokens(300);
  status.set_prefix_missed_tokens(100);
  status.set_forks(7);
  status.set_paused(1);
  status.set_pauses(4);
  status.set_slow_readers_ended(2);
  status.set_bad_logits(5);
  (*status.mutable_refusals())["QUEUE_FULL"] = 3;
  (*status.mutable_refusals())["DRAINING"] = 2;
  v1::GroupStatus* group = status.add_groups();
  group->set_blocks_total(10);
  group->set_blocks_used(3);
  group->set_blocks_cached(5);
  const std::string text = StatusText(status);
  EXPECT_THAT(text, HasSubstr("  prefix hits 75.0 % (300 of 400 positions), forks 7\n"));
  EXPECT_THAT(text, HasSubstr("  paused 1, pauses 4, slow readers ended 2, bad logits ended 5\n"));
  EXPECT_THAT(text, HasSubstr("  refused 5: DRAINING 2, QUEUE_FULL 3\n"));
  EXPECT_THAT(text, HasSubstr("blocks 3 of 10 used, 5 more cached"));
}

TEST(StatusTextTest, WithoutPrefixesAndRefusalsThereIsNoShareAndNoReason) {
  const std::string text = StatusText(v1::StatusResponse());
  EXPECT_THAT(text, HasSubstr("  prefix hits 0.0 % (0 of 0 positions), forks 0\n"));
  EXPECT_THAT(text, HasSubstr("  refused 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("tokens/s")));
}

TEST(StatusTextTest, ManyRefusalReasonsAreCutButCounted) {
  v1::StatusResponse status;
  for (int i = 0; i < 1000; ++i) (*status.mutable_refusals())["R" + std::to_string(i)] = 1;
  const std::string text = StatusText(status);
  EXPECT_THAT(text, HasSubstr("  refused 1000: "));
  EXPECT_EQ(CountOf(text, ", R"), 31U);
}

v1::StatusResponse Counted(uint64_t uptime_ms, uint64_t tokens, uint64_t requests, uint64_t plans,
                           double mean_batch) {
  v1::StatusResponse status;
  status.set_uptime_ms(uptime_ms);
  status.set_tokens_total(tokens);
  status.set_requests_total(requests);
  status.set_plans_total(plans);
  status.set_mean_batch(mean_batch);
  return status;
}

TEST(StatusRatesTest, AreDifferencesOverTheCoordinatorsOwnTime) {
  const auto rates = RatesBetween(Counted(1000, 100, 1, 10, 2), Counted(3000, 700, 4, 20, 4));
  ASSERT_TRUE(rates.has_value());
  EXPECT_EQ(rates->tokens, 300);
  EXPECT_EQ(rates->requests, 1.5);
  EXPECT_EQ(rates->plans, 5);
  EXPECT_EQ(rates->mean_batch, 6);  // (20 * 4 - 10 * 2) / (20 - 10)
  EXPECT_THAT(StatusText(Counted(3000, 700, 4, 20, 4), rates),
              HasSubstr("  now 300.0 tokens/s, 1.5 requests/s, 5.0 plans/s, mean batch 6.00\n"));
}

TEST(StatusRatesTest, OfAnIdleCoordinatorAreZero) {
  const auto rates = RatesBetween(Counted(1000, 100, 1, 10, 2), Counted(2000, 100, 1, 10, 2));
  ASSERT_TRUE(rates.has_value());
  EXPECT_EQ(rates->tokens, 0);
  EXPECT_EQ(rates->mean_batch, 0);
}

TEST(StatusRatesTest, ThereAreNoneAcrossARestartOrWithoutTime) {
  EXPECT_FALSE(RatesBetween(Counted(9000, 5, 5, 5, 1), Counted(1000, 1, 1, 1, 1)).has_value());
  EXPECT_FALSE(RatesBetween(Counted(9000, 5, 5, 5, 1), Counted(9000, 5, 5, 5, 1)).has_value());
  // A restart whose successor has been up for longer than the time between the looks.
  EXPECT_FALSE(RatesBetween(Counted(900, 5, 5, 5, 1), Counted(1000, 1, 5, 5, 1)).has_value());
}

v1::Histogram Histogram(const std::vector<uint64_t>& counts) {
  v1::Histogram histogram;
  for (const double bound : {0.01, 0.02, 0.1}) histogram.add_bounds(bound);
  histogram.mutable_counts()->Assign(counts.begin(), counts.end());
  return histogram;
}

TEST(QuantileTest, LiesEvenlyWithinItsBucket) {
  // Two up to 10 ms, four up to 20 ms, two up to 100 ms.
  const v1::Histogram histogram = Histogram({2, 4, 2, 0});
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.125), 0.005);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.25), 0.01);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.5), 0.015);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 1), 0.1);
}

TEST(QuantileTest, IsTheLastBoundBeyondAllAndNoneOfNothing) {
  EXPECT_DOUBLE_EQ(*Quantile(Histogram({0, 0, 0, 3}), 0.5), 0.1);
  EXPECT_FALSE(Quantile(Histogram({0, 0, 0, 0}), 0.5).has_value());
  EXPECT_FALSE(Quantile(v1::Histogram(), 0.5).has_value());
}

TEST(QuantileTest, TakesWhateverAPeerSays) {
  v1::Histogram histogram;
  histogram.add_counts(3);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 0.5), 0) << "no bounds";
  histogram.add_bounds(1);
  histogram.add_bounds(2);
  EXPECT_DOUBLE_EQ(*Quantile(histogram, 1), 1) << "fewer counts than bounds";
}

TEST(StatusTextTest, TellsTimesOfTheLastMomentWhileWatchedAndOfAllElse) {
  v1::StatusResponse before = Counted(1000, 100, 1, 10, 2);
  v1::StatusResponse after = Counted(2000, 200, 2, 20, 2);
  *before.mutable_first_token() = Histogram({100, 0, 0, 0});
  *after.mutable_first_token() = Histogram({100, 0, 2, 0});
  *after.mutable_token_gap() = Histogram({0, 2, 0, 0});
  EXPECT_THAT(StatusText(after),
              HasSubstr("  first token p50 5.1 p99 59.2 ms, gap p50 15.0 p99 19.9 ms, "
                        "queue p50 - p99 - ms\n"));
  EXPECT_THAT(StatusText(after, RatesBetween(before, after)),
              HasSubstr("  first token p50 60.0 p99 99.2 ms, gap p50 15.0 p99 19.9 ms, "
                        "queue p50 - p99 - ms\n"));
}

TEST(RedrawnTest, StartsAtTheTopAndClearsWhatStoodThere) {
  EXPECT_EQ(Redrawn("a\nb\n"), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
}

}  // namespace
}  // namespace pergola
