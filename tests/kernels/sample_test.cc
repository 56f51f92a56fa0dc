#include "kernels/sample.h"

#include <algorithm>
#include <limits>

#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class SampleTest : public testing::TestWithParam<CpuTarget> {
 protected:
  int32_t Draw(const SampleRow& row, int64_t vocabulary) {
    const auto stream = MakeStream(GetParam(), 1, SampleWorkspaceBytes(vocabulary));
    return Sample(*stream, row, vocabulary);
  }
};

TEST_P(SampleTest, EqualsTheReferenceExactly) {
  SKIP_WITHOUT(GetParam());
  for (int64_t vocabulary : {1, 7, 300, 2003}) {
    for (float deviation : {0.01F, 1.0F, 8.0F}) {
      auto logits = RandomValues(vocabulary, 31, deviation);
      // Ties: coarse values.
      if (deviation == 8.0F) {
        for (float& x : logits) x = std::round(x);
      }
      std::vector<uint8_t> mask(static_cast<size_t>(vocabulary / 8 + 1), 0xb5);
      for (uint32_t top_k : {0U, 1U, 40U, 900U, 9999U}) {
        for (float top_p : {1.0F, 0.9F, 0.3F, 0.0F}) {
          for (float temperature : {0.0F, 1e-6F, 0.8F, 5.0F}) {
            for (uint32_t position = 0; position < 3; ++position) {
              SampleRow row{logits.data(),
                            temperature,
                            top_k,
                            top_p,
                            77,
                            1,
                            position,
                            position == 1 ? mask.data() : nullptr};
              ASSERT_EQ(Draw(row, vocabulary), SampleRef(row, vocabulary))
                  << vocabulary << " ids, deviation " << deviation << ", top_k " << top_k
                  << ", top_p " << top_p << ", temperature " << temperature << ", position "
                  << position;
            }
          }
        }
      }
    }
  }
}

TEST_P(SampleTest, GreedyTakesTheLowestIdOfEqualLogits) {
  SKIP_WITHOUT(GetParam());
  std::vector<float> logits(100, -1.0F);
  logits[70] = logits[33] = logits[99] = 2.0F;
  EXPECT_EQ(Draw({logits.data()}, 100), 33);
  EXPECT_EQ(Draw({logits.data(), 1.0F, 1}, 100), 33);
}

TEST_P(SampleTest, MaskForbidsIds) {
  SKIP_WITHOUT(GetParam());
  std::vector<float> logits(20, 0.0F);
  logits[3] = 9.0F;
  std::vector<uint8_t> mask = {0xf7, 0xff, 0x0f};
  SampleRow row{logits.data()};
  row.mask = mask.data();
  EXPECT_EQ(Draw(row, 20), 0);
  mask = {0, 0, 0x08};
  EXPECT_EQ(Draw(row, 20), 19);
}

TEST_P(SampleTest, NothingAllowedOrFiniteIsMinusOne) {
  SKIP_WITHOUT(GetParam());
  std::vector<float> logits(20, -kInfinity);
  EXPECT_EQ(Draw({logits.data(), 1.0F}, 20), -1);
  EXPECT_EQ(Draw({logits.data()}, 0), -1);
  std::fill(logits.begin(), logits.end(), 1.0F);
  const std::vector<uint8_t> mask(3, 0);
  SampleRow row{logits.data(), 1.0F};
  row.mask = mask.data();
  EXPECT_EQ(Draw(row, 20), -1);
}

TEST_P(SampleTest, NaNAnywhereIsMinusOneEvenIfForbidden) {
  SKIP_WITHOUT(GetParam());
  for (size_t at : {0U, 17U, 19U}) {
    for (float bad : {kNaN, kInfinity}) {
      std::vector<float> logits(20, 1.0F);
      logits[at] = bad;
      const std::vector<uint8_t> mask = {0x02, 0, 0};
      SampleRow row{logits.data(), 0.7F};
      row.mask = mask.data();
      EXPECT_EQ(Draw(row, 20), -1);
      row.mask = nullptr;
      EXPECT_EQ(Draw(row, 20), -1);
      EXPECT_EQ(SampleRef(row, 20), -1);
    }
  }
}

TEST_P(SampleTest, MinusInfinityIsNeverDrawn) {
  SKIP_WITHOUT(GetParam());
  std::vector<float> logits(50, -kInfinity);
  logits[20] = -1000.0F;
  for (float top_p : {0.5F, 1.0F}) {
    for (uint32_t top_k : {0U, 5U}) {
      EXPECT_EQ(Draw({logits.data(), 2.0F, top_k, top_p, 1, 0, 0}, 50), 20);
    }
  }
}

TEST_P(SampleTest, FrequenciesFollowTheSoftmax) {
  SKIP_WITHOUT(GetParam());
  // Probabilities 1/2, 1/4, 1/8, 1/8 after the temperature.
  const float t = 0.5F;
  const std::vector<float> logits = {0.0F, -std::log(2.0F) * t, -std::log(4.0F) * t,
                                     -std::log(4.0F) * t};
  const auto stream = MakeStream(GetParam(), 1, SampleWorkspaceBytes(4));
  int counts[4] = {};
  const int draws = 4000;
  for (uint32_t p = 0; p < draws; ++p) {
    ++counts[Sample(*stream, {logits.data(), t, 0, 1, 5, 0, p}, 4)];
  }
  const double want[4] = {0.5, 0.25, 0.125, 0.125};
  for (int i = 0; i < 4; ++i) {
    // Five standard deviations of a binomial; the seed is fixed, so this does not flicker.
    EXPECT_NEAR(counts[i], draws * want[i], 5 * std::sqrt(draws * want[i] * (1 - want[i])));
  }
}

TEST_P(SampleTest, ArgMaxCountsFromFirstIdAndNamesFailures) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam(), 1);
  std::vector<float> logits = RandomValues(333, 8);
  logits[200] = logits[100] = 50.0F;
  const ValueAndId best = ArgMax(*stream, logits.data(), 333, 1000);
  EXPECT_EQ(best.id, 1100);
  EXPECT_EQ(best.value, 50.0F);
  logits[300] = kNaN;
  EXPECT_EQ(ArgMax(*stream, logits.data(), 333, 0).id, -1);
  std::fill(logits.begin(), logits.end(), -kInfinity);
  EXPECT_EQ(ArgMax(*stream, logits.data(), 333, 0).id, -1);
  EXPECT_EQ(ArgMax(*stream, logits.data(), 0, 0).id, -1);
}

INSTANTIATE_TEST_SUITE_P(Targets, SampleTest, testing::ValuesIn(kAllTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

TEST(SampleRefTest, TopPKeepsTheShortestPrefixThatReachesIt) {
  // Weights 8, 4, 2, 1, 1 of 16: top_p 0.7 needs the first two (0.75), so ids 2..4 never come.
  const std::vector<float> logits = {std::log(8.0F), std::log(4.0F), std::log(2.0F), 0.0F, 0.0F};
  bool seen[5] = {};
  for (uint32_t p = 0; p < 500; ++p) {
    seen[SampleRef({logits.data(), 1.0F, 0, 0.7F, 3, 0, p}, 5)] = true;
  }
  EXPECT_TRUE(seen[0] && seen[1]);
  EXPECT_FALSE(seen[2] || seen[3] || seen[4]);
}

}  // namespace
}  // namespace pergola
