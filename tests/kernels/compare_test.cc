#include "tests/kernels/compare.h"

#include <limits>

namespace pergola {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

testing::AssertionResult Compare(float got, float want, double bound) {
  return CompareWith({got}, {want}, [bound](size_t) { return bound; });
}

TEST(CompareTest, AcceptsADifferenceAtTheBound) {
  EXPECT_TRUE(Compare(1.5F, 1.0F, 0.5));
}

TEST(CompareTest, RefusesADifferenceAboveTheBoundOfEitherSign) {
  EXPECT_FALSE(Compare(1.5F, 1.0F, 0.49));
  EXPECT_FALSE(Compare(0.5F, 1.0F, 0.49));
}

TEST(CompareTest, RefusesTheOppositeSign) {
  EXPECT_FALSE(Compare(-1.0F, 1.0F, 0.1));
}

TEST(CompareTest, RefusesNaNWhereANumberIsExpected) {
  EXPECT_FALSE(Compare(kNaN, 1.0F, 1e30));
}

TEST(CompareTest, RefusesANumberWhereNaNIsExpected) {
  EXPECT_FALSE(Compare(1.0F, kNaN, 1e30));
}

TEST(CompareTest, AcceptsNaNWhereNaNIsExpected) {
  EXPECT_TRUE(Compare(kNaN, kNaN, 0));
  EXPECT_TRUE(CompareBits({kNaN}, {-kNaN}));
}

TEST(CompareTest, RefusesANaNBound) {
  EXPECT_FALSE(Compare(1.0F, 1.5F, std::nan("")));
}

TEST(CompareTest, TellsInfinitiesApart) {
  EXPECT_TRUE(Compare(kInfinity, kInfinity, 0));
  EXPECT_FALSE(Compare(kInfinity, -kInfinity, kInfinity));
  EXPECT_FALSE(Compare(kInfinity, 1.0F, kInfinity));
}

TEST(CompareTest, RefusesDifferentLengths) {
  EXPECT_FALSE(CompareWith({1.0F}, {}, [](size_t) { return 1.0; }));
  EXPECT_FALSE(CompareBits({}, {1.0F}));
}

TEST(CompareTest, BitsTellZeroesAndNeighboursApart) {
  EXPECT_TRUE(CompareBits({1.0F, -0.0F}, {1.0F, -0.0F}));
  EXPECT_FALSE(CompareBits({0.0F}, {-0.0F}));
  EXPECT_FALSE(CompareBits({1.0F}, {std::nextafter(1.0F, 2.0F)}));
  EXPECT_FALSE(CompareBits({kNaN}, {0.0F}));
}

}  // namespace
}  // namespace pergola
