#include <gmock/gmock.h>

#include "tests/engine/core_fixture.h"

namespace pergola {
namespace {

using sim::MakeHello;
using sim::WordOf;
using testing::ElementsAre;
using testing::HasSubstr;

class CoreSequencesTest : public CoreTest {};

TEST_F(CoreSequencesTest, TellsInfoWhenPlannedThenTokensThenTheFinish) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest request = MakeRequest(4, 2);
  request.seed = 9;
  Stream stream = Submit(std::move(request));
  Mailbox::Delivery first = stream.Take();
  ASSERT_TRUE(first.info.has_value());
  EXPECT_EQ(first.info->seed(), 9U);
  EXPECT_EQ(first.info->numerics_id(), "n1");
  EXPECT_EQ(first.info->epoch(), link->epoch);
  EXPECT_EQ(first.info->prompt_token_count(), 4U);
  EXPECT_TRUE(first.ids.empty());
  now_ += 2000;
  AnswerOne(*link, "g", 3);
  Mailbox::Delivery second = stream.Take();
  EXPECT_THAT(second.ids, ElementsAre(3));
  EXPECT_EQ(second.text, WordOf(3));
  EXPECT_FALSE(second.ended);
  AnswerOne(*link, "g", 4);
  Mailbox::Delivery last = stream.Take();
  EXPECT_THAT(last.ids, ElementsAre(4));
  ASSERT_TRUE(last.ended);
  EXPECT_TRUE(last.status.ok());
  EXPECT_EQ(last.finish->reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(last.finish->usage().prompt_tokens(), 4U);
  EXPECT_EQ(last.finish->usage().completion_tokens(), 2U);
  EXPECT_EQ(last.finish->usage().queue_ms(), 0.0);
  EXPECT_EQ(last.finish->usage().first_token_ms(), 2.0);
  EXPECT_EQ(core_.sequence_count(), 0U);
}

TEST_F(CoreSequencesTest, EndsWithTheEosIdInTheIdsButNotInTheText) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest request = MakeRequest(4, 9);
  request.eos_ids = {7};
  request.stop_ids = {7, 8};
  Stream stream = Submit(std::move(request));
  AnswerOne(*link, "g", 7);
  Mailbox::Delivery end = stream.Take();
  EXPECT_THAT(end.ids, ElementsAre(7));
  EXPECT_EQ(end.text, "");
  EXPECT_EQ(end.finish->reason(), v1::FINISH_REASON_EOS);
  EXPECT_EQ(end.finish->stop_id(), 7);
}

TEST_F(CoreSequencesTest, EndsAtAStopIdAndFlushesHeldText) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest request = MakeRequest(4, 9);
  request.stop_ids = {8};
  request.text = std::make_unique<sim::FakeText>(std::pair<int32_t, int32_t>(3, 4));
  Stream stream = Submit(std::move(request));
  AnswerOne(*link, "g", 3);
  EXPECT_EQ(stream.Take().text, "") << "3 may begin the stop string";
  AnswerOne(*link, "g", 8);
  Mailbox::Delivery end = stream.Take();
  EXPECT_EQ(end.text, WordOf(3));
  EXPECT_EQ(end.finish->reason(), v1::FINISH_REASON_STOP_ID);
}

TEST_F(CoreSequencesTest, EndsAtAStopStringWhoseTextIsNeverShown) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest request = MakeRequest(4, 9);
  request.text = std::make_unique<sim::FakeText>(std::pair<int32_t, int32_t>(3, 4));
  Stream stream = Submit(std::move(request));
  AnswerOne(*link, "g", 3);
  AnswerOne(*link, "g", 4);
  Mailbox::Delivery end = stream.Take();
  EXPECT_THAT(end.ids, ElementsAre(3, 4));
  EXPECT_EQ(end.text, "");
  EXPECT_EQ(end.finish->reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(end.finish->stop_string(), WordOf(3) + WordOf(4));
}

TEST_F(CoreSequencesTest, WaitsInTheQueueWhileNoGroupIsAttached) {
  Stream stream = Submit(MakeRequest(4, 2));
  EXPECT_EQ(core_.queued(), 1U);
  EXPECT_EQ(core_.queued_bytes(), 16);
  EXPECT_TRUE(stream.Take().empty());
  auto link = AttachAndProbe(MakeHello("g", 1));
  EXPECT_EQ(core_.queued(), 0U);
  EXPECT_EQ(core_.queued_bytes(), 0);
  EXPECT_TRUE(stream.Take().info.has_value());
}

TEST_F(CoreSequencesTest, CancelFreesSlotAndBlocksAtOnce) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream stream = Submit(MakeRequest(4, 9));
  EXPECT_EQ(core_.Status(now_).groups(0).blocks_used(), 1U);
  core_.Cancel(stream.id, absl::CancelledError("gone"), now_);
  EXPECT_EQ(stream.Take().status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(core_.Status(now_).groups(0).blocks_used(), 0U);
  EXPECT_EQ(core_.Status(now_).groups(0).slots_used(), 0U);
  AnswerOne(*link, "g", 1);
  AnswerOne(*link, "g", 1);
  EXPECT_EQ(core_.Status(now_).overrun_tokens(), 2U);
}

TEST_F(CoreSequencesTest, CancelOfAnUnknownOrEndedSequenceIsIgnored) {
  Stream stream = Submit(MakeRequest(4, 9));
  core_.Cancel(99, absl::CancelledError(""), now_);
  core_.Cancel(stream.id, absl::CancelledError(""), now_);
  core_.Cancel(stream.id, absl::CancelledError(""), now_);
  EXPECT_EQ(core_.sequence_count(), 0U);
}

TEST_F(CoreSequencesTest, ADeadlineEndsAWaitingAndARunningSequence) {
  SequenceRequest early = MakeRequest(4, 9);
  early.deadline = now_ + 50;
  Stream waiting = Submit(std::move(early));
  EXPECT_EQ(core_.NextWake(), now_ + 50);
  Advance(now_ + 50);
  EXPECT_EQ(waiting.Take().status.code(), absl::StatusCode::kDeadlineExceeded);
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest late = MakeRequest(4, 9);
  late.deadline = now_ + 70;
  Stream running = Submit(std::move(late));
  AnswerOne(*link, "g", 1);
  Advance(now_ + 70);
  Mailbox::Delivery end = running.Take();
  EXPECT_EQ(end.status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(end.status.message()), HasSubstr("1 new tokens"));
  EXPECT_EQ(core_.Status(now_).groups(0).blocks_used(), 0U);
}

TEST_F(CoreSequencesTest, NanEndsThatSequenceOnly) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream bad = Submit(MakeRequest(4, 9));
  Stream good = Submit(MakeRequest(4, 9));
  AnswerOne(*link, "g", 1);
  AnswerOne(*link, "g", 1);
  v1::StepResult result = Answer(*link->plans.front(), 2);
  ASSERT_EQ(result.entries_size(), 2);
  result.mutable_entries(0)->clear_ids();
  result.mutable_entries(0)->set_status(v1::ENTRY_STATUS_NAN);
  core_.GroupResult("g", result, now_);
  Mailbox::Delivery end = bad.Take();
  EXPECT_EQ(end.status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(end.status.message()), HasSubstr("position 5"));
  EXPECT_THAT(good.Take().ids, ElementsAre(2));
  EXPECT_EQ(link->closes, 0);
}

TEST_F(CoreSequencesTest, ResumeSendsNeitherIdsNorTextAgain) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest request = MakeRequest(4, 4);
  request.received_ids = {10, 11};
  request.received_text_bytes = 3;  // of "ak" and "al"
  request.resume_numerics_id = "n1";
  Stream stream = Submit(std::move(request));
  ASSERT_EQ(link->plans.size(), 2U);
  EXPECT_EQ(link->plans[0]->entries(0).ids_size(), 6);
  Mailbox::Delivery first = stream.Take();
  EXPECT_TRUE(first.info.has_value());
  EXPECT_EQ(first.text, "l");
  EXPECT_TRUE(first.ids.empty());
  AnswerOne(*link, "g", 12);
  Mailbox::Delivery token = stream.Take();
  EXPECT_THAT(token.ids, ElementsAre(12));
  EXPECT_EQ(token.text, WordOf(12));
  EXPECT_EQ(token.continuity, v1::CONTINUITY_EXACT);
  AnswerOne(*link, "g", 13);
  EXPECT_EQ(stream.Take().finish->usage().completion_tokens(), 4U);
}

TEST_F(CoreSequencesTest, ResumeThatHoldsAStopEndsAtOnceWithoutAGroup) {
  SequenceRequest request = MakeRequest(4, 9);
  request.received_ids = {10, 7, 11};
  request.eos_ids = {7};
  request.resume_numerics_id = "n1";
  Stream stream = Submit(std::move(request));
  Mailbox::Delivery end = stream.Take();
  ASSERT_TRUE(end.ended);
  EXPECT_EQ(end.finish->reason(), v1::FINISH_REASON_EOS);
  EXPECT_EQ(end.finish->usage().completion_tokens(), 2U);
  EXPECT_TRUE(end.ids.empty());
  EXPECT_EQ(end.text, WordOf(10));
  EXPECT_TRUE(end.info.has_value());
}

TEST_F(CoreSequencesTest, ResumeWithAllTokensEndsByLength) {
  SequenceRequest request = MakeRequest(4, 2);
  request.received_ids = {10, 11, 12, 13};
  Stream stream = Submit(std::move(request));
  EXPECT_EQ(stream.Take().finish->reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(CoreSequencesTest, ResumeWithAnAbsurdTextCountGetsNoTextTwiceAndNoError) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest request = MakeRequest(4, 3);
  request.received_ids = {10};
  request.received_text_bytes = UINT64_MAX;
  Stream stream = Submit(std::move(request));
  AnswerOne(*link, "g", 12);
  AnswerOne(*link, "g", 13);
  Mailbox::Delivery all = stream.Take();
  EXPECT_TRUE(all.ended);
  EXPECT_EQ(all.text, "");
  EXPECT_THAT(all.ids, ElementsAre(12, 13));
}

TEST_F(CoreSequencesTest, WhatNeverFitsAGroupThatCameLaterEndsWithTheLimit) {
  Stream too_long = Submit(MakeRequest(200, 90));
  Stream too_big = Submit(MakeRequest(100, 20));
  v1::Hello hello = MakeHello("g", 1);
  hello.set_block_count(6);
  hello.set_slot_count(1);
  AttachAndProbe(hello);
  Mailbox::Delivery first = too_long.Take();
  EXPECT_EQ(first.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(first.status.message()), HasSubstr("290"));
  EXPECT_THAT(std::string(first.status.message()), HasSubstr("256"));
  Mailbox::Delivery second = too_big.Take();
  EXPECT_EQ(second.status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status.message()), HasSubstr("120"));
  EXPECT_THAT(std::string(second.status.message()), HasSubstr("96"));
}

TEST_F(CoreSequencesTest, AnIdBeyondTheVocabularyNeverReachesAWorker) {
  SequenceRequest request = MakeRequest(4, 9);
  request.prompt_ids[2] = 64;
  Stream stream = Submit(std::move(request));
  auto link = AttachAndProbe(MakeHello("g", 1));
  EXPECT_EQ(stream.Take().status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(link->plans.empty());
}

TEST_F(CoreSequencesTest, DrainAnswersWhenTheLastSequenceEnds) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Submit(MakeRequest(4, 1));
  std::vector<v1::DrainResponse> drained;
  core_.Drain(
      10'000, [&](const v1::DrainResponse& response) { drained.push_back(response); }, now_);
  core_.Advance(now_);
  EXPECT_FALSE(core_.serving());
  EXPECT_TRUE(drained.empty());
  AnswerOne(*link, "g", 1);
  ASSERT_EQ(drained.size(), 1U);
  EXPECT_EQ(drained[0].finished(), 1U);
  EXPECT_EQ(drained[0].cancelled(), 0U);
}

TEST_F(CoreSequencesTest, DrainEndsTheRestWhenItsTimeIsOver) {
  Stream stream = Submit(MakeRequest(4, 1));
  std::vector<v1::DrainResponse> drained;
  core_.Drain(
      30, [&](const v1::DrainResponse& response) { drained.push_back(response); }, now_);
  Advance(now_ + 29);
  EXPECT_TRUE(drained.empty());
  EXPECT_EQ(core_.NextWake(), now_ + 1);
  Advance(now_ + 1);
  ASSERT_EQ(drained.size(), 1U);
  EXPECT_EQ(drained[0].finished(), 0U);
  EXPECT_EQ(drained[0].cancelled(), 1U);
  EXPECT_EQ(stream.Take().status.code(), absl::StatusCode::kUnavailable);
}

TEST_F(CoreSequencesTest, StatusCountsWhatHappened) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Submit(MakeRequest(4, 1));
  Submit(MakeRequest(4, 1));
  AnswerOne(*link, "g", 1);
  AnswerOne(*link, "g", 1);
  Advance(now_ + 5000);
  const v1::StatusResponse status = core_.Status(now_);
  EXPECT_TRUE(status.serving());
  EXPECT_EQ(status.requests_total(), 2U);
  EXPECT_EQ(status.tokens_total(), 2U);
  EXPECT_EQ(status.plans_total(), 2U);
  EXPECT_EQ(status.mean_batch(), 1.0);
  EXPECT_EQ(status.uptime_ms(), 5U);
  EXPECT_EQ(status.model(), "toy");
  ASSERT_EQ(status.groups_size(), 1);
  EXPECT_EQ(status.groups(0).state(), v1::GROUP_STATE_READY);
  EXPECT_EQ(status.groups(0).blocks_total(), 64U);
}

}  // namespace
}  // namespace pergola
