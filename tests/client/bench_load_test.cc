// When requests arrive and what they ask: the same for the same seed, and as the flags say.
#include "client/bench/load.h"

#include <cmath>
#include <set>

#include "client/bench/requests.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::AllOf;
using ::testing::Ge;
using ::testing::Le;

std::vector<double> Take(Load& load, int arrivals) {
  std::vector<double> times;
  for (int i = 0; i < arrivals; ++i) times.push_back(load.Take().at_s);
  return times;
}

TEST(OpenLoadTest, TheSameSeedGivesTheSameTimesAndAnotherOthers) {
  OpenLoad one(10, 1, 7);
  OpenLoad same(10, 1, 7);
  OpenLoad other(10, 1, 8);
  const std::vector<double> times = Take(one, 100);
  EXPECT_EQ(Take(same, 100), times);
  EXPECT_NE(Take(other, 100), times);
}

TEST(OpenLoadTest, GapsHaveTheMeanAndTheSpreadOfAPoissonProcess) {
  constexpr int kArrivals = 100'000;
  OpenLoad load(50, 1, 1);
  const std::vector<double> times = Take(load, kArrivals);
  // The mean of n exponential gaps deviates from theirs by more than 5 / sqrt(n) of it once in
  // 1.7 million seeds; this seed is fixed.
  EXPECT_NEAR(times.back() / kArrivals, 0.02, 0.02 * 5 / std::sqrt(kArrivals));
  double squares = 0;
  for (size_t i = 1; i < times.size(); ++i) {
    const double gap = times[i] - times[i - 1];
    ASSERT_GT(gap, 0);
    squares += (gap - 0.02) * (gap - 0.02);
  }
  // Variance mean^2; that of its estimate is 8 mean^4 / n.
  EXPECT_NEAR(squares / kArrivals, 0.0004, 0.0004 * 5 * std::sqrt(8.0 / kArrivals));
}

TEST(OpenLoadTest, BurstsArriveAtOnceAtTheSameMeanRate) {
  OpenLoad load(50, 10, 1);
  const std::vector<double> times = Take(load, 100'000);
  std::set<double> bursts(times.begin(), times.end());
  EXPECT_EQ(bursts.size(), 10'000U);
  EXPECT_EQ(times[0], times[9]);
  EXPECT_LT(times[9], times[10]);
  EXPECT_NEAR(times.back() / 100'000, 0.02, 0.02 * 5 / std::sqrt(10'000));
}

TEST(OpenLoadTest, WaitsForNobody) {
  OpenLoad load(50, 1, 1);
  const double next = load.NextAtS();
  load.Ended(0, 1000);
  EXPECT_EQ(load.NextAtS(), next);
  EXPECT_EQ(load.Take().at_s, next);
}

TEST(UserLoadTest, WithoutThinkingItIsAClosedLoop) {
  UserLoad load(2, {}, 1);
  EXPECT_EQ(load.Take().user, 0U);
  EXPECT_EQ(load.NextAtS(), 0);
  EXPECT_EQ(load.Take().user, 1U);
  EXPECT_EQ(load.NextAtS(), Load::kNever);
  load.Ended(1, 3.5);
  EXPECT_EQ(load.NextAtS(), 3.5);
  EXPECT_EQ(load.Take().user, 1U);
  EXPECT_EQ(load.NextAtS(), Load::kNever);
}

TEST(UserLoadTest, ThinksUniformlyBetweenTheBoundsBeforeEveryRequest) {
  UserLoad load(1, {1, 5}, 1);
  double now = 0;
  double sum = 0;
  constexpr int kRequests = 10'000;
  for (int i = 0; i < kRequests; ++i) {
    const double thought = load.Take().at_s - now;
    ASSERT_THAT(thought, AllOf(Ge(1), Le(5)));
    sum += thought;
    now += thought + 0.25;
    load.Ended(0, now);
  }
  // Uniform over 4 s: deviation 4 / sqrt(12).
  EXPECT_NEAR(sum / kRequests, 3, 5 * 4 / std::sqrt(12.0 * kRequests));
}

TEST(UserLoadTest, OneUsersTimesDoNotDependOnTheOthers) {
  UserLoad few(2, {1, 5}, 9);
  UserLoad many(50, {1, 5}, 9);
  double in_few = 0;
  double in_many = 0;
  for (int i = 0; i < 2; ++i) {
    const Arrival arrival = few.Take();
    if (arrival.user == 1) in_few = arrival.at_s;
  }
  for (int i = 0; i < 50; ++i) {
    const Arrival arrival = many.Take();
    if (arrival.user == 1) in_many = arrival.at_s;
  }
  EXPECT_EQ(in_few, in_many);
  EXPECT_GT(in_few, 0);
}

RequestShape Shape() {
  RequestShape shape;
  shape.prompt_tokens = 40;
  shape.output_tokens = 7;
  shape.vocabulary = 100;
  shape.context_length = 4096;
  return shape;
}

TEST(BenchRequestsTest, AreAFunctionOfSeedAndNumber) {
  RequestShape shape = Shape();
  shape.mix = true;
  v1::GenerateRequest first;
  FillRequest(shape, 3, &first);
  // Filled over another one, as streams do.
  v1::GenerateRequest again;
  for (const uint64_t number : {12, 5, 3}) FillRequest(shape, number, &again);
  EXPECT_EQ(again.SerializeAsString(), first.SerializeAsString());
  FillRequest(shape, 4, &again);
  EXPECT_NE(again.tokens().SerializeAsString(), first.tokens().SerializeAsString());
  shape.seed = 2;
  FillRequest(shape, 3, &again);
  EXPECT_NE(again.tokens().SerializeAsString(), first.tokens().SerializeAsString());
}

TEST(BenchRequestsTest, AskExactlyTheLengthsGiven) {
  v1::GenerateRequest request;
  FillRequest(Shape(), 0, &request);
  EXPECT_EQ(request.tokens().ids_size(), 40);
  for (const int32_t id : request.tokens().ids()) EXPECT_THAT(id, AllOf(Ge(0), Le(99)));
  EXPECT_EQ(request.stop().max_new_tokens(), 7U);
  EXPECT_TRUE(request.stop().ignore_eos());
  EXPECT_EQ(request.sampling().temperature(), 0);
}

TEST(BenchRequestsTest, AMixHasAllSixKindsWithinTheirBounds) {
  const RequestShape shape = Shape();
  std::set<std::string> kinds;
  for (uint64_t number = 0; number < 200; ++number) {
    v1::SamplingParameters sampling;
    FillMixedSampling(shape, number, &sampling);
    if (sampling.temperature() == 0) {
      kinds.insert("greedy");
      EXPECT_FALSE(sampling.has_seed());
      continue;
    }
    EXPECT_TRUE(sampling.has_seed());
    EXPECT_LE(sampling.top_k(), shape.vocabulary);
    if (sampling.has_top_k()) {
      kinds.insert("top_k");
    } else if (sampling.has_top_p()) {
      kinds.insert("top_p");
    } else if (sampling.has_repetition_penalty()) {
      kinds.insert("repetition");
    } else if (sampling.has_presence_penalty()) {
      kinds.insert("presence");
    } else {
      kinds.insert("temperature");
    }
  }
  EXPECT_EQ(kinds.size(), 6U);
}

TEST(ShareGptLengthsTest, HaveTheMeansStatedWhereTheContextCutsNothing) {
  double prompts = 0;
  double outputs = 0;
  constexpr int kRequests = 200'000;
  for (uint64_t number = 0; number < kRequests; ++number) {
    const RequestLengths lengths = ShareGptLengths(1, number, 1 << 30);
    prompts += lengths.prompt_tokens;
    outputs += lengths.output_tokens;
  }
  // A log-normal's deviation is mean * sqrt(exp(s^2) - 1): 1.80 and 1.31 of the mean. Rounding to
  // at least 1 adds less than a token.
  EXPECT_NEAR(prompts / kRequests, 161.31, 1 + 5 * 1.80 * 161.31 / std::sqrt(kRequests));
  EXPECT_NEAR(outputs / kRequests, 337.99, 1 + 5 * 1.31 * 337.99 / std::sqrt(kRequests));
}

TEST(ShareGptLengthsTest, FitEveryContext) {
  for (const uint32_t context : {2U, 3U, 64U, 2048U}) {
    for (uint64_t number = 0; number < 2000; ++number) {
      const RequestLengths lengths = ShareGptLengths(1, number, context);
      ASSERT_GE(lengths.prompt_tokens, 1U);
      ASSERT_GE(lengths.output_tokens, 1U);
      ASSERT_LE(lengths.prompt_tokens, context / 2);
      ASSERT_LE(lengths.prompt_tokens + lengths.output_tokens, context);
    }
  }
}

}  // namespace
}  // namespace pergola
