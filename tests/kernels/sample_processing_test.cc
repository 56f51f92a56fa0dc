// What every parameter does to a row, and that the fast version agrees with the reference on rows
// nobody chose by hand.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "gmock/gmock.h"
#include "kernels/sample.h"
#include "kernels/sample_math.h"
#include "tests/kernels/kernel_test_util.h"
#include "tests/kernels/random_sample_row.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();

class SampleProcessingTest : public testing::TestWithParam<CpuTarget> {
 protected:
  int32_t Draw(const SampleRow& row, int64_t vocabulary) {
    const auto stream =
        MakeStream(GetParam(), 1, SampleWorkspaceBytes(vocabulary, row.history_count));
    return Sample(*stream, row, vocabulary);
  }
  std::vector<int32_t> Kept(const SampleRow& row, int64_t vocabulary) {
    const auto stream =
        MakeStream(GetParam(), 1, SampleWorkspaceBytes(vocabulary, row.history_count));
    return Survivors(*stream, row, vocabulary);
  }
  static void Look(const std::vector<int32_t>& history, int64_t prompt_tokens, SampleRow* row) {
    row->history = history.data();
    row->history_count = static_cast<int64_t>(history.size());
    row->prompt_tokens = prompt_tokens;
    row->position = static_cast<uint32_t>(history.size());
  }
};

TEST_P(SampleProcessingTest, BiasIsAddedAndMinusInfinityForbids) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {3, 2, 1, 0};
  const std::vector<int32_t> ids = {0, 2};
  std::vector<float> biases = {-2.5F, 1.5F};
  SampleRow row{logits.data()};
  row.bias_ids = ids.data();
  row.biases = biases.data();
  row.bias_count = 2;
  EXPECT_EQ(Draw(row, 4), 2);
  biases = {-kInfinity, -kInfinity};
  EXPECT_EQ(Draw(row, 4), 1);
  row.temperature = 1;
  EXPECT_THAT(Kept(row, 4), ElementsAre(1, 3));
}

TEST_P(SampleProcessingTest, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogits) {
  SKIP_WITHOUT(GetParam());
  // Both lose, and either alone would leave the wrong id on top.
  std::vector<float> logits = {4, 2.5F, -9};
  const std::vector<int32_t> history = {0, 2, 0};
  SampleRow row{logits.data()};
  Look(history, 3, &row);  // the prompt counts
  row.repetition_penalty = 2;
  EXPECT_EQ(Draw(row, 3), 1);  // 4 / 2 once, however often it came
  row.repetition_penalty = 1.5F;
  EXPECT_EQ(Draw(row, 3), 0);
  logits = {-3, -4, -9};
  row.repetition_penalty = 1.5F;
  EXPECT_EQ(Draw(row, 3), 1);  // -3 * 1.5
  row.repetition_penalty = 0;
  EXPECT_EQ(Draw(row, 3), 0) << "0 switches it off";
}

TEST_P(SampleProcessingTest, PresenceCountsNewIdsOnceAndFrequencyEachTime) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {5, 4, 3};
  const std::vector<int32_t> history = {0, 0, 1, 1, 1, 0};
  SampleRow row{logits.data()};
  Look(history, 2, &row);  // new: 1 1 1 0
  row.presence_penalty = 1.5F;
  EXPECT_EQ(Draw(row, 3), 0);  // 3.5, 2.5, 3
  row.presence_penalty = 2.25F;
  EXPECT_EQ(Draw(row, 3), 2);  // 2.75, 1.75, 3
  row.presence_penalty = 0;
  row.frequency_penalty = 1.5F;
  EXPECT_EQ(Draw(row, 3), 0);  // 3.5, -0.5, 3
  row.frequency_penalty = -0.75F;
  EXPECT_EQ(Draw(row, 3), 1);  // 5.75, 6.25, 3
  row.prompt_tokens = 6;
  EXPECT_EQ(Draw(row, 3), 0) << "nothing is new";
}

TEST_P(SampleProcessingTest, NgramsOfPromptAndNewIdsDoNotComeTwice) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits(10, 0.0F);
  const std::vector<int32_t> history = {1, 2, 3, 1, 2, 4, 1, 2};
  SampleRow row{logits.data(), 1.0F};
  Look(history, 4, &row);
  row.no_repeat_ngram_size = 3;
  EXPECT_THAT(Kept(row, 10), ElementsAre(0, 1, 2, 5, 6, 7, 8, 9));
  row.no_repeat_ngram_size = 2;
  EXPECT_THAT(Kept(row, 10), ElementsAre(0, 1, 2, 5, 6, 7, 8, 9));
  row.no_repeat_ngram_size = 1;
  EXPECT_THAT(Kept(row, 10), ElementsAre(0, 5, 6, 7, 8, 9));
  row.no_repeat_ngram_size = 5;  // 4 1 2 came once only
  EXPECT_EQ(Kept(row, 10).size(), 10U);
  for (uint32_t size : {8U, 9U, 4000000000U}) {
    row.no_repeat_ngram_size = size;
    EXPECT_EQ(Kept(row, 10).size(), 10U) << "n-grams of " << size;
  }
}

TEST_P(SampleProcessingTest, OverlappingNgramsAreFound) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits(4, 0.0F);
  const std::vector<int32_t> history = {3, 1, 1, 1, 1};
  SampleRow row{logits.data(), 1.0F};
  Look(history, 5, &row);
  for (uint32_t size : {2U, 3U, 4U}) {
    row.no_repeat_ngram_size = size;
    EXPECT_THAT(Kept(row, 4), ElementsAre(0, 2, 3)) << "n-grams of " << size;
  }
  row.no_repeat_ngram_size = 5;
  EXPECT_EQ(Kept(row, 4).size(), 4U);
}

TEST_P(SampleProcessingTest, AnNgramInsideAnotherOfItsKindIsFound) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits(4, 0.0F);
  // 1 1 is followed by 1 and, one place on, by 2.
  const std::vector<int32_t> history = {1, 1, 1, 2, 0, 1, 1};
  SampleRow row{logits.data(), 1.0F};
  Look(history, 7, &row);
  row.no_repeat_ngram_size = 3;
  EXPECT_THAT(Kept(row, 4), ElementsAre(0, 3));
}

TEST_P(SampleProcessingTest, SuppressedIdsAreForbiddenForTheFirstNewTokensOnly) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {1, 9, 2};
  const std::vector<int32_t> suppressed = {1};
  SampleRow row{logits.data()};
  row.suppressed = suppressed.data();
  row.suppressed_count = 1;
  row.prompt_tokens = 10;
  row.min_new_tokens = 3;
  for (uint32_t position : {10U, 11U, 12U}) {
    row.position = position;
    EXPECT_EQ(Draw(row, 3), 2) << position;
  }
  row.position = 13;
  EXPECT_EQ(Draw(row, 3), 1);
}

TEST_P(SampleProcessingTest, MaskOfIdsIsTheMaskOfBits) {
  SKIP_WITHOUT(GetParam());
  const auto logits = RandomValues(70, 3);
  const std::vector<int32_t> allowed = {69, 0, 8, 33};
  std::vector<uint8_t> bits(9);
  for (int32_t id : allowed) bits[id / 8] |= static_cast<uint8_t>(1 << id % 8);
  SampleRow row{logits.data(), 1.0F};
  row.mask_ids = allowed.data();
  row.mask_id_count = 4;
  EXPECT_THAT(Kept(row, 70), ElementsAre(0, 8, 33, 69));
  row.mask_ids = nullptr;
  row.mask = bits.data();
  EXPECT_THAT(Kept(row, 70), ElementsAre(0, 8, 33, 69));
}

TEST_P(SampleProcessingTest, EverythingForbiddenIsMinusOne) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {1, 2};
  const std::vector<int32_t> history = {0, 1};
  SampleRow row{logits.data()};
  Look(history, 2, &row);
  row.no_repeat_ngram_size = 1;
  EXPECT_EQ(Draw(row, 2), -1);
  row.temperature = 1;
  EXPECT_EQ(Draw(row, 2), -1);
  EXPECT_THAT(Kept(row, 2), IsEmpty());
}

TEST_P(SampleProcessingTest, PenaltiesNeverLeaveTheFiniteNumbers) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {3e38F, -3e38F, 0};
  const std::vector<int32_t> history = {0, 1, 2};
  SampleRow row{logits.data(), 1.0F};
  Look(history, 1, &row);
  for (float penalty : {1e-38F, 100.0F}) {
    row.repetition_penalty = penalty;
    for (float other : {-kMost, kMost}) {
      row.presence_penalty = row.frequency_penalty = other;
      EXPECT_EQ(Kept(row, 3).size(), 3U);
      EXPECT_GE(Draw(row, 3), 0);
    }
  }
}

TEST_P(SampleProcessingTest, HistoryOutsideTheVocabularyIsPassedOver) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {2, 1};
  const std::vector<int32_t> history = {-1, 2, 1 << 30, 0, -1};
  SampleRow row{logits.data()};
  Look(history, 0, &row);
  row.frequency_penalty = 3;
  row.no_repeat_ngram_size = 2;
  EXPECT_EQ(Draw(row, 2), 1);
}

TEST_P(SampleProcessingTest, MinPKeepsWhatIsNearTheLargest) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits = {std::log(8.0F), std::log(4.0F), std::log(2.0F), 0.0F, 0.0F};
  SampleRow row{logits.data(), 1.0F};
  row.min_p = 0.24F;
  EXPECT_THAT(Kept(row, 5), ElementsAre(0, 1, 2));
  row.min_p = 1;
  EXPECT_THAT(Kept(row, 5), ElementsAre(0));
  row.min_p = 0.12F;
  EXPECT_EQ(Kept(row, 5).size(), 5U);
}

TEST_P(SampleProcessingTest, TypicalDropsWhatIsTooProbable) {
  SKIP_WITHOUT(GetParam());
  // Probabilities 0.4, then 60 of 0.01: entropy 3.13, -log p 0.92 and 4.61. The many are nearer.
  std::vector<float> logits(61, std::log(0.01F));
  logits[7] = std::log(0.4F);
  SampleRow row{logits.data(), 1.0F};
  row.typical_p = 0.105F;
  EXPECT_THAT(Kept(row, 61), ElementsAre(0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11));
  row.typical_p = 0.605F;
  EXPECT_EQ(Kept(row, 61).size(), 61U);
  row.typical_p = 0;
  EXPECT_EQ(Kept(row, 61).size(), 61U) << "0 switches it off";
}

TEST_P(SampleProcessingTest, CutAmongEqualsKeepsTheLowestIds) {
  SKIP_WITHOUT(GetParam());
  const std::vector<float> logits(1000, 0.5F);
  SampleRow row{logits.data(), 0.7F};
  row.top_p = 0.25F;
  EXPECT_EQ(Kept(row, 1000).size(), 250U);
  EXPECT_EQ(Kept(row, 1000).back(), 249);
  row.top_p = 1;
  row.typical_p = 0.125F;
  EXPECT_EQ(Kept(row, 1000).size(), 125U);
  EXPECT_EQ(Kept(row, 1000).back(), 124);
  row.typical_p = 1;
  row.top_k = 13;
  EXPECT_EQ(Kept(row, 1000).back(), 12);
}

TEST_P(SampleProcessingTest, EqualsTheReferenceIdForId) {
  SKIP_WITHOUT(GetParam());
  if (GetParam() == CpuTarget::kReference) GTEST_SKIP() << "it is the reference";
  const std::pair<int64_t, int> sizes[] = {{1, 60}, {17, 300}, {2003, 200}, {131072, 8}};
  for (const auto& [vocabulary, rows] : sizes) {
    const auto stream = MakeStream(GetParam(), 1, SampleWorkspaceBytes(vocabulary, 100));
    for (int i = 0; i < rows; ++i) {
      const RandomSampleRow random(vocabulary, static_cast<uint32_t>(1000 * vocabulary + i));
      ASSERT_EQ(Survivors(*stream, random.row, vocabulary), SurvivorsRef(random.row, vocabulary))
          << vocabulary << " ids, row " << i;
      ASSERT_EQ(Sample(*stream, random.row, vocabulary), SampleRef(random.row, vocabulary))
          << vocabulary << " ids, row " << i;
    }
  }
}

TEST_P(SampleProcessingTest, FlatRowsOfAWholeVocabularyEqualTheReference) {
  SKIP_WITHOUT(GetParam());
  if (GetParam() == CpuTarget::kReference) GTEST_SKIP() << "it is the reference";
  constexpr int64_t kVocabulary = 131072;
  const auto logits = RandomValues(kVocabulary, 4, 0.01F);
  const auto stream = MakeStream(GetParam(), 1, SampleWorkspaceBytes(kVocabulary));
  SampleRow row{logits.data(), 1.0F};
  for (float p : {0.1F, 0.95F}) {
    row.top_p = p;
    row.typical_p = 1;
    EXPECT_EQ(Survivors(*stream, row, kVocabulary), SurvivorsRef(row, kVocabulary));
    row.typical_p = 0.5F;
    EXPECT_EQ(Survivors(*stream, row, kVocabulary), SurvivorsRef(row, kVocabulary));
    row.top_p = 1;
    row.typical_p = p;
    EXPECT_EQ(Survivors(*stream, row, kVocabulary), SurvivorsRef(row, kVocabulary));
  }
}

// Of all cuts of a row, the one that an f32 top_p hits best.
struct ClosestCut {
  explicit ClosestCut(const std::vector<float>& logits) {
    kept.resize(logits.size());
    std::iota(kept.begin(), kept.end(), 0);
    std::sort(kept.begin(), kept.end(), [&](int32_t a, int32_t b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    const float largest = logits[kept[0]];
    double lanes[8] = {};
    for (size_t id = 0; id < logits.size(); ++id) {
      lanes[id % 8] += SoftmaxWeight(Exponent(logits[id], largest, 1.0));
    }
    const double total = FoldEight(lanes);
    std::vector<double> sums;
    double nearest = total;
    for (int32_t id : kept) {
      const double before = sums.empty() ? 0.0 : sums.back();
      sums.push_back(before + SoftmaxWeight(Exponent(logits[id], largest, 1.0)));
      const auto p = static_cast<float>(sums.back() / total);
      const double miss = std::abs(static_cast<double>(p) * total - sums.back());
      if (p > 0.05F && p < 1 && miss < nearest) {
        nearest = miss;
        top_p = p;
      }
    }
    const double wanted = static_cast<double>(top_p) * total;
    const auto cut = std::lower_bound(sums.begin(), sums.end(), wanted) - sums.begin();
    kept.resize(static_cast<size_t>(cut) + 1);
    std::sort(kept.begin(), kept.end());
    distance = nearest / total;
  }
  std::vector<int32_t> kept;
  float top_p = 1;
  double distance = 0;  // share of the total
};

TEST_P(SampleProcessingTest, CutsThatHangOnRoundingAreThoseOfTheSortedList) {
  SKIP_WITHOUT(GetParam());
  if (GetParam() == CpuTarget::kReference) GTEST_SKIP() << "it is the reference";
  constexpr int64_t kVocabulary = 131072;
  const auto stream = MakeStream(GetParam(), 1, SampleWorkspaceBytes(kVocabulary));
  // The best of 300 seeds: sums in another order than the list's come to other cuts.
  for (uint32_t seed : {195, 158, 43, 102, 206, 282, 1, 3, 182, 28, 9, 100}) {
    const auto logits = RandomValues(kVocabulary, seed, 0.01F);
    const ClosestCut closest(logits);
    ASSERT_LT(closest.distance, 1e-14);
    SampleRow row{logits.data(), 1.0F};
    row.top_p = closest.top_p;
    EXPECT_TRUE(Survivors(*stream, row, kVocabulary) == closest.kept) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, SampleProcessingTest, testing::ValuesIn(kAllTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
