#include "base/counter_rng.h"

#include <set>

#include "gtest/gtest.h"

namespace pergola {
namespace {

// Known answers published with the Random123 library (kat_vectors, philox4x32-10).
TEST(CounterRngTest, PhiloxMatchesPublishedVectors) {
  EXPECT_EQ(Philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t ones = 0xffffffff;
  EXPECT_EQ(Philox4x32({ones, ones, ones, ones}, {ones, ones}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(CounterRngTest, DrawsStayInsideTheOpenIntervalAndDiffer) {
  std::set<double> seen;
  for (uint32_t token = 0; token < 10000; ++token) {
    const double u = UniformDraw(7, 0, 3, token);
    EXPECT_GT(u, 0.0);
    EXPECT_LT(u, 1.0);
    seen.insert(u);
  }
  EXPECT_EQ(seen.size(), 10000U);
  EXPECT_NE(UniformDraw(7, 0, 3, 1), UniformDraw(8, 0, 3, 1));
  EXPECT_NE(UniformDraw(7, 0, 3, 1), UniformDraw(7, 1, 3, 1));
  EXPECT_NE(UniformDraw(7, 0, 3, 1), UniformDraw(7, 0, 4, 1));
}

}  // namespace
}  // namespace pergola
