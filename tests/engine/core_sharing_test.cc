// EngineCore: slow readers, siblings, scores, tenants, and the choice between groups.
#include <gmock/gmock.h>

#include "tests/engine/core_fixture.h"

namespace pergola {
namespace {

using sim::MakeHello;
using testing::HasSubstr;
using testing::SizeIs;

class CoreSharingTest : public CoreTest {
 protected:
  SequenceRequest WithMailbox(SequenceRequest request, size_t tokens) {
    request.mailbox = std::make_shared<Mailbox>([] {}, Mailbox::Bounds{tokens, 1 << 20});
    return request;
  }
  void AnswerAll(RecordingLink& link, const std::string& group, int32_t id) {
    while (!link.plans.empty()) AnswerOne(link, group, id);
  }
};

TEST_F(CoreSharingTest, AFullMailboxPausesItsOwnSequenceOnly) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream slow = Submit(WithMailbox(MakeRequest(4, 90), 3));
  Stream fast = Submit(MakeRequest(4, 90));
  for (int i = 0; i < 10; ++i) {
    AnswerOne(*link, "g", 1);
    fast.Take();
  }
  EXPECT_EQ(core_.Status(now_).paused(), 1U);
  EXPECT_EQ(core_.Status(now_).pauses(), 1U);
  ASSERT_FALSE(link->plans.empty());
  EXPECT_EQ(link->plans.back()->entries_size(), 1);
  const Mailbox::Delivery all = slow.Take();
  EXPECT_GE(all.ids.size(), 3U);
  EXPECT_LE(all.ids.size(), 3U + 2U) << "the bound and what was in flight";
}

TEST_F(CoreSharingTest, APausedSequenceGoesOnWhenItsReaderTakes) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream slow = Submit(WithMailbox(MakeRequest(4, 90), 2));
  AnswerAll(*link, "g", 1);
  ASSERT_TRUE(link->plans.empty());
  slow.Take();
  EXPECT_LE(core_.NextWake(), now_ + 5000) << "full mailboxes are looked at every 5 ms";
  now_ += 5000;
  core_.Advance(now_);
  EXPECT_EQ(core_.Status(now_).paused(), 0U);
  EXPECT_EQ(link->plans.back()->entries_size(), 1);
}

TEST_F(CoreSharingTest, AReaderThatTakesNothingEndsAfterItsTime) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream slow = Submit(WithMailbox(MakeRequest(4, 90), 2));
  AnswerAll(*link, "g", 1);
  const TimeUs paused = now_;
  TimeUs ended = 0;
  while (core_.sequence_count() > 0 && now_ < paused + 40'000'000) {
    now_ = core_.NextWake();
    core_.Advance(now_);
    AnswerAll(*link, "g", 1);
    ended = now_;
  }
  EXPECT_GE(ended, paused + 30'000'000);
  EXPECT_LE(ended, paused + 30'010'000);
  const Mailbox::Delivery last = slow.Take();
  EXPECT_EQ(last.status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(last.status.message()), HasSubstr("30000 ms"));
  EXPECT_GE(last.ids.size(), 2U) << "what was sampled is not taken back";
  EXPECT_EQ(core_.Status(now_).slow_readers_ended(), 1U);
  EXPECT_EQ(core_.NextWake() > now_, true);
}

TEST_F(CoreSharingTest, AReaderThatTookIsNotSilentBecausePlansInFlightFillItsMailboxAgain) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream slow = Submit(WithMailbox(MakeRequest(4, 90), 1));
  AnswerOne(*link, "g", 1);
  ASSERT_EQ(core_.Status(now_).paused(), 1U);
  ASSERT_FALSE(link->plans.empty()) << "one more token is on its way";
  const auto last = link->plans.back();
  slow.Take();
  now_ += 900;  // below the step timeout of these tests, and before the next look
  core_.GroupResult("g", Answer(*last, 1), now_);
  Advance(now_ + 29'999'500);
  EXPECT_EQ(core_.sequence_count(), 1U) << "30 s after the pause, but not after the take";
  Advance(now_ + 10'000);
  EXPECT_EQ(core_.sequence_count(), 0U);
}

TEST_F(CoreSharingTest, SiblingsWaitForThePromptAndThenStartBehindIt) {
  v1::Hello hello = MakeHello("g", 1);
  hello.set_step_tokens(32);
  auto link = AttachAndProbe(hello);
  auto fork = std::make_shared<ForkGroup>();
  for (uint32_t i = 0; i < 3; ++i) {
    SequenceRequest request = MakeRequest(40, 9);
    request.fork_group = fork;
    request.index = i;
    Submit(std::move(request));
  }
  ASSERT_THAT(link->plans, SizeIs(2));
  EXPECT_EQ(link->plans[0]->starts_size(), 1);
  EXPECT_EQ(link->plans[1]->starts_size(), 0) << "the prompt is complete with this plan";
  AnswerOne(*link, "g", 1);
  ASSERT_THAT(link->plans, SizeIs(2));
  EXPECT_EQ(link->plans[1]->starts_size(), 2);
  EXPECT_EQ(link->plans[1]->copies_size(), 2);
  EXPECT_EQ(core_.Status(now_).forks(), 2U);
}

TEST_F(CoreSharingTest, SiblingsGoOnWithoutALeaderThatIsGone) {
  v1::Hello hello = MakeHello("g", 1);
  hello.set_step_tokens(16);
  auto link = AttachAndProbe(hello);
  auto fork = std::make_shared<ForkGroup>();
  std::vector<Stream> streams;
  for (uint32_t i = 0; i < 3; ++i) {
    SequenceRequest request = MakeRequest(60, 9);
    request.fork_group = fork;
    request.index = i;
    streams.push_back(Submit(std::move(request)));
  }
  core_.Cancel(streams[0].id, absl::CancelledError("gone"), now_);
  for (int i = 0; i < 40 && core_.sequence_count() > 0; ++i) AnswerOne(*link, "g", 1);
  EXPECT_EQ(core_.sequence_count(), 0U);
  EXPECT_TRUE(streams[1].Take().status.ok());
  EXPECT_TRUE(streams[2].Take().status.ok());
  EXPECT_EQ(core_.Status(now_).forks(), 1U) << "the second computes the prompt for the third";
}

TEST_F(CoreSharingTest, ScoringEndsWithThePromptAndDeliversItsLogprobs) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest request = MakeRequest(5, 1);
  request.max_new_tokens = 0;
  request.prompt_logprobs = 0;
  Stream stream = Submit(std::move(request));
  v1::StepResult result = Answer(*link->plans.front(), 1);
  for (int i = 0; i < 4; ++i) {
    result.mutable_entries(0)->add_target_logprobs()->set_logprob(static_cast<float>(-i));
  }
  core_.GroupResult("g", result, now_);
  const Mailbox::Delivery end = stream.Take();
  ASSERT_THAT(end.prompt_logprobs, SizeIs(4));
  EXPECT_EQ(end.prompt_logprobs[3].logprob(), -3.0F);
  ASSERT_TRUE(end.ended);
  EXPECT_EQ(end.finish->reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(end.finish->usage().completion_tokens(), 0U);
}

TEST_F(CoreSharingTest, NothingToScoreEndsAtOnce) {
  SequenceRequest request = MakeRequest(1, 1);
  request.max_new_tokens = 0;
  request.prompt_logprobs = 5;
  EXPECT_TRUE(Submit(std::move(request)).Take().ended);
  SequenceRequest echo = MakeRequest(7, 1);
  echo.max_new_tokens = 0;
  EXPECT_TRUE(Submit(std::move(echo)).Take().status.ok());
  EXPECT_EQ(core_.sequence_count(), 0U);
}

TEST_F(CoreSharingTest, DeliversTheLogprobsOfSampledIds) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  SequenceRequest request = MakeRequest(4, 1);
  request.sampling.set_logprobs(1);
  Stream stream = Submit(std::move(request));
  v1::StepResult result = Answer(*link->plans.front(), 9);
  v1::Logprobs& logprobs = *result.mutable_entries(0)->add_logprobs();
  logprobs.set_logprob(-0.5F);
  logprobs.add_top_ids(9);
  logprobs.add_top_logprobs(-0.5F);
  core_.GroupResult("g", result, now_);
  const Mailbox::Delivery end = stream.Take();
  ASSERT_THAT(end.logprobs, SizeIs(1));
  EXPECT_EQ(end.logprobs[0].logprob(), -0.5F);
}

TEST_F(CoreSharingTest, TakesTurnsBetweenTenants) {
  v1::Hello hello = MakeHello("g", 1);
  hello.set_slot_count(1);
  for (int i = 0; i < 6; ++i) {
    SequenceRequest request = MakeRequest(4, 1);
    request.tenant = i < 4 ? "a" : "b";
    Submit(std::move(request));
  }
  auto link = AttachAndProbe(hello);
  AnswerOne(*link, "g", 1);
  AnswerOne(*link, "g", 1);
  AnswerOne(*link, "g", 1);
  AnswerOne(*link, "g", 1);
  EXPECT_EQ(core_.queued(), 1U);
  // Two of each were served, one runs; strict arrival order would have left one of "b".
  EXPECT_EQ(core_.sequence_count(), 2U);
}

TEST_F(CoreSharingTest, ASequenceGoesWhereItsPrefixIs) {
  v1::Hello a = MakeHello("a", 1);
  v1::Hello b = MakeHello("b", 1);
  auto link_a = AttachAndProbe(a);
  Submit(MakeRequest(100, 1));
  AnswerAll(*link_a, "a", 1);
  ASSERT_EQ(core_.sequence_count(), 0U);
  auto link_b = AttachAndProbe(b);
  SequenceRequest busy = MakeRequest(4, 90);
  Submit(std::move(busy));  // the emptier group would be the other one now
  link_a->plans.clear();
  link_b->plans.clear();
  Submit(MakeRequest(100, 9));
  const auto started = [](const RecordingLink& link, uint32_t computed) {
    for (const auto& plan : link.plans) {
      for (const v1::SlotStart& start : plan->starts()) {
        if (start.computed() == computed) return true;
      }
    }
    return false;
  };
  // Whoever holds the prefix has a free place in its pipe within a plan or two.
  EXPECT_TRUE(started(*link_a, 96) || core_.queued() == 1);
  EXPECT_FALSE(started(*link_b, 0)) << "group b has nothing of it";
}

TEST_F(CoreSharingTest, ABusyGroupIsNotWaitedFor) {
  v1::Hello hello = MakeHello("a", 1);
  hello.set_slot_count(1);
  auto link_a = AttachAndProbe(hello);
  Submit(MakeRequest(100, 90));  // fills the only slot of a
  hello.set_group("b");
  auto link_b = AttachAndProbe(hello);
  Submit(MakeRequest(100, 9));
  ASSERT_FALSE(link_b->plans.empty());
  EXPECT_EQ(link_b->plans[0]->starts_size(), 1);
}

TEST_F(CoreSharingTest, TheEngineRefusesNothingItCouldServe) {
  EXPECT_TRUE(CheckLoad(Options(), core_.load(now_), Asked(), now_).ok());
  EXPECT_EQ(core_.load(now_).place_us, 0);
}

}  // namespace
}  // namespace pergola
