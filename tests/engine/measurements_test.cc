#include "coordinator/engine/measurements.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <string>

namespace pergola {
namespace {

using testing::Each;

v1::Histogram Copy(const TimeHistogram& histogram) {
  v1::Histogram copy;
  histogram.CopyTo(&copy);
  return copy;
}

// The bucket, by its upper bound in seconds, that holds the only observations; 0: beyond them all.
double OnlyBucket(const v1::Histogram& histogram) {
  double found = -1;
  for (int i = 0; i < histogram.counts_size(); ++i) {
    if (histogram.counts(i) == 0) continue;
    EXPECT_EQ(found, -1) << "more than one bucket has counts";
    found = i < histogram.bounds_size() ? histogram.bounds(i) : 0;
  }
  return found;
}

TEST(TimeHistogramTest, HasOneCountMoreThanAscendingBounds) {
  const v1::Histogram empty = Copy(TimeHistogram());
  ASSERT_EQ(empty.counts_size(), empty.bounds_size() + 1);
  EXPECT_THAT(empty.counts(), Each(0));
  EXPECT_EQ(empty.sum(), 0);
  for (int i = 1; i < empty.bounds_size(); ++i) EXPECT_LT(empty.bounds(i - 1), empty.bounds(i));
  EXPECT_EQ(empty.bounds(0), 1e-4);
  EXPECT_EQ(empty.bounds(empty.bounds_size() - 1), 100);
}

TEST(TimeHistogramTest, ABoundBelongsToItsBucket) {
  const std::map<int64_t, double> cases = {{0, 1e-4},        {100, 1e-4},        {101, 2.5e-4},
                                           {1000, 1e-3},     {1001, 2.5e-3},     {999'999, 1},
                                           {1'000'001, 2.5}, {100'000'000, 100}, {100'000'001, 0}};
  for (const auto& [time_us, bound] : cases) {
    TimeHistogram histogram;
    histogram.Observe(time_us);
    EXPECT_EQ(OnlyBucket(Copy(histogram)), bound) << time_us;
    EXPECT_DOUBLE_EQ(Copy(histogram).sum(), static_cast<double>(time_us) / 1e6);
  }
}

TEST(TimeHistogramTest, SharedTimesCountEachAndSumOnce) {
  TimeHistogram histogram;
  histogram.Observe(3000, 3);
  histogram.Observe(500);
  EXPECT_EQ(histogram.count(), 4U);
  EXPECT_EQ(Copy(histogram).counts(3), 3U) << "three of 1 ms";
  EXPECT_EQ(Copy(histogram).counts(2), 1U);
  EXPECT_DOUBLE_EQ(Copy(histogram).sum(), 0.0035);
}

TEST(TimeHistogramTest, AShareIsRoundedUp) {
  TimeHistogram histogram;
  histogram.Observe(201, 2);
  EXPECT_EQ(OnlyBucket(Copy(histogram)), 2.5e-4) << "100.5 us each";
}

TEST(TimeHistogramTest, TakesWhatNoClockShouldSay) {
  TimeHistogram histogram;
  histogram.Observe(-5);
  EXPECT_EQ(OnlyBucket(Copy(histogram)), 1e-4);
  EXPECT_EQ(Copy(histogram).sum(), 0);
  histogram.Observe(1000, 0);
  EXPECT_EQ(histogram.count(), 1U) << "nothing happened no times";
  histogram.Observe(std::numeric_limits<int64_t>::max());
  histogram.Observe(std::numeric_limits<int64_t>::max(), 2);
  EXPECT_EQ(histogram.count(), 4U);
  EXPECT_EQ(Copy(histogram).counts(19), 3U);
}

TEST(TokenGapsTest, AFirstTokenHasNoGap) {
  TimeHistogram gaps;
  TokenGaps sequence;
  sequence.OnToken(5000, &gaps);
  sequence.OnEnd(&gaps);
  EXPECT_EQ(gaps.count(), 0U);
}

TEST(TokenGapsTest, EveryFollowingTokenHasOne) {
  TimeHistogram gaps;
  TokenGaps sequence;
  for (const TimeUs now : {1000, 2000, 4000}) sequence.OnToken(now, &gaps);
  sequence.OnEnd(&gaps);
  EXPECT_EQ(gaps.count(), 2U);
  EXPECT_DOUBLE_EQ(Copy(gaps).sum(), 0.003);
  EXPECT_EQ(Copy(gaps).counts(3), 1U) << "1 ms";
  EXPECT_EQ(Copy(gaps).counts(4), 1U) << "2 ms";
}

TEST(TokenGapsTest, TokensOfOneTimeShareTheGap) {
  TimeHistogram gaps;
  TokenGaps sequence;
  for (const TimeUs now : {1000, 5000, 5000, 5000, 5000}) sequence.OnToken(now, &gaps);
  sequence.OnEnd(&gaps);
  EXPECT_EQ(Copy(gaps).counts(3), 4U) << "four of 1 ms";
  EXPECT_DOUBLE_EQ(Copy(gaps).sum(), 0.004);
}

TEST(TokenGapsTest, WhatComesWithTheFirstTokenHasNone) {
  TimeHistogram gaps;
  TokenGaps sequence;
  for (const TimeUs now : {1000, 1000, 2000}) sequence.OnToken(now, &gaps);
  sequence.OnEnd(&gaps);
  EXPECT_EQ(gaps.count(), 1U);
}

TEST(MeasurementsTest, CountsEndsByStatusAndByFinishReason) {
  Measurements measured;
  measured.CountEnd(absl::StatusCode::kOk, v1::FINISH_REASON_EOS);
  measured.CountEnd(absl::StatusCode::kOk, v1::FINISH_REASON_EOS);
  measured.CountEnd(absl::StatusCode::kOk, v1::FINISH_REASON_LENGTH);
  measured.CountEnd(absl::StatusCode::kCancelled, v1::FINISH_REASON_UNSPECIFIED);
  measured.CountEnd(absl::StatusCode::kUnauthenticated, v1::FINISH_REASON_UNSPECIFIED);
  measured.CountEnd(static_cast<absl::StatusCode>(99), v1::FINISH_REASON_UNSPECIFIED);
  v1::StatusResponse status;
  measured.CopyTo(&status);
  std::map<std::string, uint64_t> ended;
  for (const v1::EndCount& end : status.ended())
    ended[end.status() + "/" + end.finish()] = end.count();
  const std::map<std::string, uint64_t> expected = {
      {"OK/EOS", 2}, {"OK/LENGTH", 1}, {"CANCELLED/", 1}, {"UNAUTHENTICATED/", 2}};
  EXPECT_EQ(ended, expected);
}

TEST(MeasurementsTest, EveryFinishReasonHasAName) {
  for (int i = 1; i < v1::FinishReason_ARRAYSIZE; ++i) {
    const auto reason = static_cast<v1::FinishReason>(i);
    EXPECT_EQ(std::string("FINISH_REASON_") + FinishName(reason), v1::FinishReason_Name(reason));
  }
  EXPECT_STREQ(FinishName(v1::FINISH_REASON_UNSPECIFIED), "");
}

}  // namespace
}  // namespace pergola
