#include "coordinator/doors/held_results.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pergola {
namespace {

using ::testing::HasSubstr;

TEST(HeldResultsTest, NamesSizeAndLimitOfTheCall) {
  ResultBudget budget(1000);
  HeldResults held(&budget, 100);
  EXPECT_TRUE(held.Add(60).ok());
  const absl::Status status = held.Add(41);
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("take 101 bytes, the limit is 100"));
  EXPECT_EQ(budget.used(), 60U) << "the refused bytes are not held";
  EXPECT_TRUE(held.Add(40).ok());
}

TEST(HeldResultsTest, SharesTheLimitOfAllCalls) {
  ResultBudget budget(100);
  HeldResults one(&budget, 100);
  HeldResults other(&budget, 100);
  EXPECT_TRUE(one.Add(70).ok());
  const absl::Status status = other.Add(31);
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the limit of 100 bytes"));
  EXPECT_TRUE(other.Add(30).ok());
}

TEST(HeldResultsTest, GivesBackOnceWhateverItsMoves) {
  ResultBudget budget(100);
  {
    HeldResults one(&budget, 100);
    EXPECT_TRUE(one.Add(50).ok());
    HeldResults moved(std::move(one));
    HeldResults assigned(&budget, 100);
    EXPECT_TRUE(assigned.Add(20).ok());
    assigned = std::move(moved);
    EXPECT_EQ(budget.used(), 50U) << "its own 20 are given back";
  }
  EXPECT_EQ(budget.used(), 0U);
}

TEST(HeldResultsTest, AHugeSizeDoesNotWrap) {
  ResultBudget budget(100);
  HeldResults held(&budget, SIZE_MAX);
  EXPECT_TRUE(held.Add(50).ok());
  EXPECT_FALSE(held.Add(SIZE_MAX - 49).ok());
  EXPECT_FALSE(budget.TryTake(SIZE_MAX));
  EXPECT_EQ(budget.used(), 50U);
}

}  // namespace
}  // namespace pergola
