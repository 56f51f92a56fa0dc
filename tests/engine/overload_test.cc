#include "coordinator/engine/overload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/engine/engine.h"

namespace pergola {
namespace {

using testing::HasSubstr;

constexpr TimeUs kNow = 1'000'000;

EngineOptions Options() {
  EngineOptions options;
  options.max_queued_sequences = 100;
  options.max_queued_bytes = 1000;
  options.max_queue_wait_us = 5'000'000;
  return options;
}

TEST(OverloadTest, AdmitsWhileNothingIsKnown) {
  Asked asked;
  asked.deadline = kNow + 1;
  EXPECT_TRUE(CheckLoad(Options(), Load(), asked, kNow).ok());
}

TEST(OverloadTest, RefusesBeyondTheNumberOfSequences) {
  Load load;
  load.queued = 100;
  load.place_us = 20'000;
  const absl::Status status = CheckLoad(Options(), load, Asked(), kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RefusalReason(status), "QUEUE_FULL");
  EXPECT_EQ(RetryDelayUs(status), 25 * 20'000) << "when a quarter of the queue has gone";
  EXPECT_THAT(std::string(status.message()), HasSubstr("100 of 100"));
  load.queued = 99;
  EXPECT_TRUE(CheckLoad(Options(), load, Asked(), kNow).ok());
}

TEST(OverloadTest, RefusesBeyondTheBytesOfPrompts) {
  Load load;
  load.queued_bytes = 900;
  Asked asked;
  asked.prompt_tokens = 26;
  const absl::Status status = CheckLoad(Options(), load, asked, kNow);
  EXPECT_EQ(RefusalReason(status), "QUEUE_BYTES");
  EXPECT_EQ(RetryDelayUs(status), 1'000'000) << "the pace is not known";
  asked.prompt_tokens = 25;
  EXPECT_TRUE(CheckLoad(Options(), load, asked, kNow).ok());
}

TEST(OverloadTest, RefusesWhoWouldWaitTooLong) {
  Load load;
  load.queued = 60;
  load.place_us = 100'000;
  const absl::Status status = CheckLoad(Options(), load, Asked(), kNow);
  EXPECT_EQ(RefusalReason(status), "QUEUE_WAIT");
  EXPECT_EQ(RetryDelayUs(status), 1'000'000);
  EXPECT_THAT(std::string(status.message()), HasSubstr("6000 ms"));
  EngineOptions unbounded = Options();
  unbounded.max_queue_wait_us = 0;
  EXPECT_TRUE(CheckLoad(unbounded, load, Asked(), kNow).ok());
}

TEST(OverloadTest, RefusesADeadlineThatNotEvenAnIdleGroupMeets) {
  Load load;
  load.step_us = 1000;
  load.prompt_row_us = 100;
  Asked asked;
  asked.prompt_tokens = 101;
  asked.least_new_tokens = 10;
  asked.deadline = kNow + 19'999;
  const absl::Status status = CheckLoad(Options(), load, asked, kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(RefusalReason(status), "DEADLINE");
  EXPECT_LT(RetryDelayUs(status), 0) << "coming back is of no use";
  asked.deadline = kNow + 20'000;
  EXPECT_TRUE(CheckLoad(Options(), load, asked, kNow).ok());
}

TEST(OverloadTest, RefusesADeadlineThatTheQueueDoesNotLeaveTimeFor) {
  Load load;
  load.queued = 10;
  load.place_us = 100'000;
  load.step_us = 1000;
  Asked asked;
  asked.deadline = kNow + 500'000;
  const absl::Status status = CheckLoad(Options(), load, asked, kNow);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RefusalReason(status), "DEADLINE_WAIT");
  EXPECT_EQ(RetryDelayUs(status), 501'000);
}

TEST(OverloadTest, RefusesADeadlineThatHasPassed) {
  Asked asked;
  asked.deadline = kNow;
  EXPECT_EQ(RefusalReason(CheckLoad(Options(), Load(), asked, kNow)), "DEADLINE");
}

TEST(OverloadTest, HostileNumbersDoNotOverflow) {
  Load load;
  load.queued = 99;
  load.place_us = 1e30;
  load.step_us = 1e30;
  Asked asked;
  asked.prompt_tokens = 1;
  asked.least_new_tokens = UINT64_MAX;
  asked.deadline = INT64_MAX - 1;
  EngineOptions options = Options();
  options.max_queue_wait_us = 0;
  EXPECT_EQ(RefusalReason(CheckLoad(options, load, asked, kNow)), "DEADLINE");
  asked.deadline = kNever;
  options.max_queue_wait_us = 1;
  EXPECT_EQ(RetryDelayUs(CheckLoad(options, load, asked, kNow)), 60'000'000);
}

TEST(OverloadTest, AStatusThatIsNoRefusalSaysNothing) {
  EXPECT_EQ(RefusalReason(absl::InternalError("x")), "");
  EXPECT_LT(RetryDelayUs(absl::OkStatus()), 0);
}

TEST(QueuePaceTest, IsTheMeanTimePerPlaceWhileSomebodyWaits) {
  QueuePace pace;
  TimeUs now = 0;
  pace.Observe(true, now);
  for (int i = 0; i < 7; ++i) pace.Placed(now += 1000);
  EXPECT_EQ(pace.PlaceUs(now), 0) << "too early to say";
  for (int i = 0; i < 20; ++i) pace.Placed(now += 1000);
  EXPECT_NEAR(pace.PlaceUs(now), 1000, 1e-6);
}

TEST(QueuePaceTest, DoesNotCountTheTimeInWhichNobodyWaits) {
  QueuePace pace;
  TimeUs now = 0;
  for (int i = 0; i < 30; ++i) {
    pace.Observe(true, now);
    pace.Placed(now += 1000);
    pace.Observe(false, now);
    now += 1'000'000;
  }
  EXPECT_NEAR(pace.PlaceUs(now), 1000, 1e-6);
}

TEST(QueuePaceTest, SlowsDownWhileNothingMoves) {
  QueuePace pace;
  TimeUs now = 0;
  pace.Observe(true, now);
  for (int i = 0; i < 100; ++i) pace.Placed(now += 1000);
  const double before = pace.PlaceUs(now);
  EXPECT_GT(pace.PlaceUs(now + 10'000'000), 10 * before);
}

}  // namespace
}  // namespace pergola
