// Percentiles against values that a person can count.
#include "client/bench/statistics.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(SamplesTest, APercentileIsTheNearestRank) {
  Samples samples;
  for (int i = 1000; i >= 1; --i) samples.Add(i);
  EXPECT_EQ(samples.Percentile(50), 500);
  EXPECT_EQ(samples.Percentile(99), 990);
  EXPECT_EQ(samples.Percentile(99.9), 999);
  EXPECT_EQ(samples.Percentile(99.91), 1000);
  EXPECT_EQ(samples.Percentile(100), 1000);
  EXPECT_EQ(samples.Percentile(0.05), 1);
}

TEST(SamplesTest, APercentileOfFewSamplesIsOneOfThem) {
  Samples none;
  EXPECT_EQ(none.Percentile(50), 0);
  Samples one;
  one.Add(7);
  EXPECT_EQ(one.Percentile(1), 7);
  EXPECT_EQ(one.Percentile(99.9), 7);
  Samples two;
  two.Add(2);
  two.Add(1);
  EXPECT_EQ(two.Percentile(50), 1);
  EXPECT_EQ(two.Percentile(51), 2);
}

TEST(SamplesTest, AWeightCountsAsSoManyEqualSamples) {
  Samples samples;
  samples.Add(5, 1);
  samples.Add(4, 3);
  samples.Add(9, 0);
  EXPECT_EQ(samples.count(), 4U);
  EXPECT_EQ(samples.Percentile(75), 4);
  EXPECT_EQ(samples.Percentile(76), 5);
}

TEST(SamplesTest, SamplesAddedAfterALookCount) {
  Samples samples;
  samples.Add(2);
  EXPECT_EQ(samples.Median(), 2);
  samples.Add(1);
  Samples others;
  others.Add(0.5, 5);
  samples.Add(others);
  EXPECT_EQ(samples.Median(), 0.5);
  EXPECT_EQ(samples.Percentile(100), 2);
  EXPECT_EQ(samples.left_out(), 0U);
}

TEST(SamplesTest, TheDistributionRisesTo100) {
  Samples samples;
  samples.Add(30, 1);
  samples.Add(10, 2);
  samples.Add(20, 1);
  EXPECT_THAT(samples.Distribution(100), ElementsAre(Pair(10, 50), Pair(20, 75), Pair(30, 100)));
  EXPECT_THAT(samples.Distribution(2), ElementsAre(Pair(10, 50), Pair(30, 100)));
  EXPECT_TRUE(Samples().Distribution(10).empty());
  Samples many;
  for (int i = 1; i <= 10'000; ++i) many.Add(i);
  EXPECT_EQ(many.Distribution(100).size(), 100U);
}

}  // namespace
}  // namespace pergola
