// What the engine core measures and tells of the ends of sequences.
#include <gmock/gmock.h>

#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "tests/engine/core_fixture.h"

namespace pergola {
namespace {

using sim::MakeHello;
using testing::HasSubstr;

uint64_t Count(const v1::Histogram& histogram) {
  return std::accumulate(histogram.counts().begin(), histogram.counts().end(), uint64_t{0});
}

class CoreMetricsTest : public CoreTest {
 protected:
  CoreMetricsTest() {
    core_.OnSequenceEnd([this](SequenceEnd end) { ends_.push_back(std::move(end)); });
  }

  std::vector<SequenceEnd> ends_;
};

TEST_F(CoreMetricsTest, MeasuresOneSequenceFromItsSubmission) {
  Stream stream = Submit(MakeRequest(4, 3));
  now_ += 3000;
  auto link = AttachAndProbe(MakeHello("g", 1));
  now_ += 200;
  AnswerOne(*link, "g", 3);
  for (int i = 0; i < 2; ++i) {
    now_ += 400;
    AnswerOne(*link, "g", 4);
  }
  const v1::StatusResponse status = core_.Status(now_);
  EXPECT_EQ(status.prompt_tokens_total(), 4U);
  EXPECT_EQ(Count(status.queue_wait()), 1U);
  EXPECT_DOUBLE_EQ(status.queue_wait().sum(), 0.003);
  EXPECT_EQ(Count(status.first_token()), 1U);
  EXPECT_DOUBLE_EQ(status.first_token().sum(), 0.0032);
  EXPECT_EQ(Count(status.token_gap()), 2U);
  EXPECT_DOUBLE_EQ(status.token_gap().sum(), 0.0008);
  ASSERT_EQ(ends_.size(), 1U);
  EXPECT_EQ(ends_[0].request_id, "r");
  EXPECT_EQ(ends_[0].prompt_tokens, 4U);
  EXPECT_EQ(ends_[0].new_tokens, 3U);
  EXPECT_EQ(ends_[0].first_planned - ends_[0].submitted, 3000);
  EXPECT_EQ(ends_[0].first_token - ends_[0].submitted, 3200);
  EXPECT_EQ(ends_[0].ended - ends_[0].submitted, 4000);
  EXPECT_TRUE(ends_[0].status.ok());
  EXPECT_EQ(ends_[0].finish, v1::FINISH_REASON_LENGTH);
}

TEST_F(CoreMetricsTest, StepTimesBelongToTheirGroupAndProbesAreNone) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  auto idle = AttachAndProbe(MakeHello("idle", 1));
  Submit(MakeRequest(4, 1));
  auto& busy = link->plans.empty() ? idle : link;
  const std::string name = link->plans.empty() ? "idle" : "g";
  now_ += 700;
  AnswerOne(*busy, name, 3);
  const v1::StatusResponse status = core_.Status(now_);
  ASSERT_EQ(status.groups_size(), 2);
  for (const v1::GroupStatus& group : status.groups()) {
    EXPECT_EQ(Count(group.step_time()), group.name() == name ? 1U : 0U);
    EXPECT_DOUBLE_EQ(group.step_time().sum(), group.name() == name ? 0.0007 : 0.0);
  }
}

TEST_F(CoreMetricsTest, StepTimesOutliveALostGroup) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Submit(MakeRequest(4, 1));
  AnswerOne(*link, "g", 3);
  core_.GroupLost(connection_, absl::UnavailableError("gone"), now_);
  EXPECT_EQ(Count(core_.Status(now_).groups(0).step_time()), 1U);
  AttachAndProbe(MakeHello("g", 1));
  EXPECT_EQ(Count(core_.Status(now_).groups(0).step_time()), 1U);
}

TEST_F(CoreMetricsTest, APreemptedOrReplayedSequenceWaitsForItsFirstSlotOnce) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Submit(MakeRequest(4, 3));
  AnswerOne(*link, "g", 3);
  core_.GroupLost(connection_, absl::UnavailableError("gone"), now_);
  now_ += 100;
  link = AttachAndProbe(MakeHello("g", 1));
  AnswerOne(*link, "g", 4);
  const v1::StatusResponse status = core_.Status(now_);
  EXPECT_EQ(status.replays(), 1U);
  EXPECT_EQ(status.prompt_tokens_total(), 4U) << "each prompt once";
  EXPECT_EQ(Count(status.queue_wait()), 1U);
  EXPECT_EQ(Count(status.first_token()), 1U);
}

TEST_F(CoreMetricsTest, CountsErrorsByCodeAndTellsThem) {
  SequenceRequest waiting = MakeRequest(4, 3);
  waiting.deadline = now_ + 100;
  waiting.tenant = "t";
  waiting.index = 2;
  Submit(std::move(waiting));
  Stream cancelled = Submit(MakeRequest(4, 3));
  core_.Cancel(cancelled.id, absl::CancelledError("gone"), now_);
  Advance(now_ + 100);
  std::map<std::string, uint64_t> ended;
  const v1::StatusResponse status = core_.Status(now_);
  for (const v1::EndCount& end : status.ended()) ended[end.status() + end.finish()] = end.count();
  const std::map<std::string, uint64_t> expected = {{"CANCELLED", 1}, {"DEADLINE_EXCEEDED", 1}};
  EXPECT_EQ(ended, expected);
  EXPECT_EQ(Count(status.queue_wait()), 0U) << "neither got a slot";
  EXPECT_EQ(Count(status.first_token()), 0U);
  ASSERT_EQ(ends_.size(), 2U);
  EXPECT_EQ(ends_[0].status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(ends_[1].tenant, "t");
  EXPECT_EQ(ends_[1].index, 2U);
  EXPECT_EQ(ends_[1].first_planned, kNever);
  EXPECT_EQ(ends_[1].first_token, kNever);
}

TEST_F(CoreMetricsTest, RepeatedPassesAreCounted) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream stream = Submit(MakeRequest(4, 3));
  v1::StepResult result = Answer(*link->plans.front(), 3);
  result.set_repeated_passes(2);
  core_.GroupResult("g", result, now_);
  EXPECT_EQ(core_.Status(now_).repeated_passes(), 2U);
}

TEST_F(CoreMetricsTest, ANanIsCounted) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream stream = Submit(MakeRequest(4, 3));
  v1::StepResult result = Answer(*link->plans.front(), 3);
  result.mutable_entries(0)->clear_ids();
  result.mutable_entries(0)->set_status(v1::ENTRY_STATUS_NAN);
  core_.GroupResult("g", result, now_);
  EXPECT_EQ(core_.Status(now_).bad_logits(), 1U);
  ASSERT_EQ(ends_.size(), 1U);
  EXPECT_EQ(ends_[0].status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(EndLine(ends_[0]), HasSubstr("status=INTERNAL error=\"the logits after position 3"));
}

}  // namespace
}  // namespace pergola
