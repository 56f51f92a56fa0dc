#include "coordinator/engine/step_cost.h"

#include <gtest/gtest.h>

namespace pergola {
namespace {

// 1000 us and 50 us per row.
void Learn(StepCost* cost, uint32_t plans) {
  for (uint32_t i = 0; i < plans; ++i) {
    const uint32_t rows = 1 + i % 7 * 10;
    cost->Add(rows, 1000 + 50 * rows);
  }
}

TEST(StepCostTest, KnowsNothingBeforeSixteenPlans) {
  StepCost cost;
  Learn(&cost, 15);
  EXPECT_FALSE(cost.known());
  Learn(&cost, 1);
  EXPECT_TRUE(cost.known());
}

TEST(StepCostTest, FindsTheLineThatAnswersLieOn) {
  StepCost cost;
  Learn(&cost, 50);
  // Exact numbers on an exact line: only rounding of doubles is left.
  EXPECT_NEAR(cost.fixed_us(), 1000, 1e-6);
  EXPECT_NEAR(cost.per_row_us(), 50, 1e-6);
  EXPECT_EQ(cost.RowsWithin(2001), 20U);
  EXPECT_EQ(cost.RowsWithin(1049), 0U);
}

TEST(StepCostTest, TakesPlansOfOneSizeAsCostPerRow) {
  StepCost cost;
  for (int i = 0; i < 20; ++i) cost.Add(10, 2000);
  EXPECT_NEAR(cost.per_row_us(), 200, 1e-6);
  EXPECT_EQ(cost.fixed_us(), 0);
}

TEST(StepCostTest, OneLatePlanHardlyCounts) {
  StepCost cost;
  Learn(&cost, 64);
  cost.Add(20, 60'000'000);
  // It counts as 4 * 2000 us with a weight of 1 in about 41 (the faded sum of 65 plans).
  EXPECT_LT(cost.TimeUs(20), 2000 + 3 * 2000 / 30.0);
}

TEST(StepCostTest, FollowsAMachineThatBecameSlower) {
  StepCost cost;
  Learn(&cost, 64);
  for (uint32_t i = 0; i < 640; ++i) cost.Add(1 + i % 7 * 10, 10 * (1000 + 50 * (1 + i % 7 * 10)));
  EXPECT_NEAR(cost.TimeUs(30), 25'000, 250);
}

TEST(StepCostTest, PassesOverPlansWithoutRowsOrTime) {
  StepCost cost;
  for (int i = 0; i < 20; ++i) cost.Add(0, 100);
  for (int i = 0; i < 20; ++i) cost.Add(5, 0);
  EXPECT_FALSE(cost.known());
  EXPECT_EQ(cost.TimeUs(10), 0);
}

TEST(StepCostTest, ALineNeverFallsNorBeginsBelowZero) {
  StepCost falls;
  for (uint32_t i = 0; i < 40; ++i) falls.Add(1 + i % 5 * 10, 5000 - 100 * (i % 5));
  EXPECT_GE(falls.per_row_us(), 0);
  StepCost steep;
  for (uint32_t i = 0; i < 40; ++i) steep.Add(10 + i % 5 * 10, 1 + (i % 5) * 1000);
  EXPECT_GE(steep.fixed_us(), 0);
}

}  // namespace
}  // namespace pergola
