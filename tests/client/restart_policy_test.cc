#include "client/restart_policy.h"

#include "base/limits.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Time = RestartPolicy::Time;

constexpr Time kStart{};

TEST(RestartPolicyTest, WaitsTwiceAsLongEachTimeUpToTheLongest) {
  RestartPolicy policy;
  policy.Healthy(kStart);
  for (const int delay_ms : {100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000}) {
    policy.Started();
    const auto again = policy.Died(kStart, 1);
    ASSERT_TRUE(again.has_value());
    EXPECT_EQ(*again - kStart, milliseconds(delay_ms));
  }
}

TEST(RestartPolicyTest, StartsOverAfterAHealthyMinute) {
  RestartPolicy policy;
  policy.Healthy(kStart);
  policy.Died(kStart, 1);
  policy.Died(kStart, 1);
  policy.Started();
  policy.Healthy(kStart);
  EXPECT_EQ(*policy.Died(kStart + seconds(60), 1) - (kStart + seconds(60)), milliseconds(100));
}

TEST(RestartPolicyTest, AlmostAMinuteIsNotEnough) {
  RestartPolicy policy;
  policy.Healthy(kStart);
  policy.Died(kStart, 1);
  policy.Started();
  policy.Healthy(kStart);
  const Time died = kStart + milliseconds(59999);
  EXPECT_EQ(*policy.Died(died, 1) - died, milliseconds(200));
}

TEST(RestartPolicyTest, AgeWithoutHealthDoesNotCount) {
  RestartPolicy policy;
  policy.Healthy(kStart);
  policy.Died(kStart, 1);
  policy.Started();
  const Time died = kStart + seconds(600);
  EXPECT_EQ(*policy.Died(died, 1) - died, milliseconds(200));
}

TEST(RestartPolicyTest, NeverRetriesAnExitThatCannotBeHelped) {
  RestartPolicy policy;
  EXPECT_FALSE(policy.Died(kStart, kExitUsage).has_value());
  RestartPolicy worked_once;
  worked_once.Healthy(kStart);
  worked_once.Died(kStart, kExitRetryable);
  worked_once.Started();
  EXPECT_FALSE(worked_once.Died(kStart, kExitUsage).has_value());
}

// A second group of the same name ends the first with a usage error; that ended the whole service.
TEST(RestartPolicyTest, RetriesAGroupThatWorkedAndWasSuperseded) {
  RestartPolicy policy;
  policy.Healthy(kStart);
  EXPECT_TRUE(policy.Died(kStart, kExitUsage).has_value());
}

TEST(RestartPolicyTest, RetriesTheRetryableCodesAndSignals) {
  for (const int code : {kExitRetryable, kExitWatchdog, kExitOrphaned, 128 + 9, 1, 0}) {
    RestartPolicy policy;
    EXPECT_TRUE(policy.Died(kStart, code).has_value()) << code;
  }
}

TEST(RestartPolicyTest, GivesUpOnWhatWasNeverHealthy) {
  RestartPolicy policy;
  for (int i = 1; i < RestartPolicy::kMaxFailedStarts; ++i) {
    policy.Started();
    ASSERT_TRUE(policy.Died(kStart, 1).has_value()) << i;
  }
  policy.Started();
  EXPECT_FALSE(policy.Died(kStart, 1).has_value());
}

}  // namespace
}  // namespace pergola
