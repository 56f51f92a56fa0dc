#include <gmock/gmock.h>

#include "tests/engine/core_fixture.h"

namespace pergola {
namespace {

using sim::MakeHello;
using testing::ElementsAre;
using testing::HasSubstr;

class CoreGroupsTest : public CoreTest {
 protected:
  void Lose(const std::string& group) {
    core_.GroupLost(core_.groups().at(group)->connection, absl::UnavailableError("killed"), now_);
    core_.Advance(now_);
  }

  // Progress of so many groups that never attach, each on a connection of its own.
  void ReportNames(int count, const std::string& prefix = "n") {
    v1::Progress progress;
    for (int i = 0; i < count; ++i) {
      progress.set_group(absl::StrCat(prefix, i));
      progress.set_phase("reading weights");
      core_.GroupProgress(kFirstConnection + static_cast<uint64_t>(i), progress, now_ + i);
    }
  }

  static constexpr uint64_t kFirstConnection = 5000;
};

TEST_F(CoreGroupsTest, WelcomesWithTheStartTimeThenOneMoreEachTime) {
  EXPECT_EQ(Attach(MakeHello("a", 1))->epoch, 5000U);
  EXPECT_EQ(Attach(MakeHello("b", 1))->epoch, 5001U);
  v1::Hello hello = MakeHello("c", 1);
  hello.set_last_epoch(7000);
  EXPECT_EQ(Attach(hello)->epoch, 7001U);
}

TEST_F(CoreGroupsTest, RefusesAHelloInWordsWithValueAndLimit) {
  struct Case {
    const char* says;
    std::function<void(v1::Hello&)> damage;
  };
  const Case cases[] = {
      {"protocol version 99", [](v1::Hello& hello) { hello.set_protocol_version(99); }},
      {"0 bytes", [](v1::Hello& hello) { hello.set_group(""); }},
      {"65 bytes", [](v1::Hello& hello) { hello.set_group(std::string(65, 'g')); }},
      {"text_hash other", [](v1::Hello& hello) { hello.set_text_hash("other"); }},
      {"vocabulary_size 0", [](v1::Hello& hello) { hello.set_vocabulary_size(0); }},
      {"context_length 0", [](v1::Hello& hello) { hello.set_context_length(0); }},
      {"block_count 0", [](v1::Hello& hello) { hello.set_block_count(0); }},
      {"block_count 4294967295", [](v1::Hello& hello) { hello.set_block_count(UINT32_MAX); }},
      {"slot_count 0", [](v1::Hello& hello) { hello.set_slot_count(0); }},
      {"slot_count 4294967295", [](v1::Hello& hello) { hello.set_slot_count(UINT32_MAX); }},
      {"step_tokens 0", [](v1::Hello& hello) { hello.set_step_tokens(0); }},
      {"block_tokens 24", [](v1::Hello& hello) { hello.set_block_tokens(24); }},
      {"pipeline_parallel 0",
       [](v1::Hello& hello) { hello.mutable_layout()->set_pipeline_parallel(0); }},
      {"last_epoch", [](v1::Hello& hello) { hello.set_last_epoch(UINT64_MAX); }},
  };
  for (const Case& damaged : cases) {
    v1::Hello hello = MakeHello("g", 1);
    damaged.damage(hello);
    auto link = std::make_shared<RecordingLink>();
    core_.GroupAttached(++connection_, hello, link, now_);
    EXPECT_EQ(link->closes, 1) << damaged.says;
    EXPECT_THAT(std::string(link->close_status.message()), HasSubstr(damaged.says));
    EXPECT_EQ(link->epoch, 0U);
  }
  EXPECT_FALSE(core_.limits().attached);
}

TEST_F(CoreGroupsTest, AnEmptyTextHashOnEitherSideIsNotCompared) {
  v1::Hello hello = MakeHello("g", 1);
  hello.clear_text_hash();
  EXPECT_EQ(Attach(hello)->closes, 0);
}

TEST_F(CoreGroupsTest, RefusesAnotherFingerprintWhileAGroupIsAttached) {
  auto first = Attach(MakeHello("a", 1));
  v1::Hello hello = MakeHello("b", 1);
  hello.set_fingerprint("f2");
  auto second = Attach(hello);
  EXPECT_THAT(std::string(second->close_status.message()), HasSubstr("f2"));
  EXPECT_EQ(first->closes, 0);
  Lose("a");
  EXPECT_EQ(Attach(hello)->closes, 0);
}

TEST_F(CoreGroupsTest, ANewerAttachOfTheSameNameEndsTheOlder) {
  auto older = AttachAndProbe(MakeHello("g", 1));
  Submit(MakeRequest(4, 9));
  ASSERT_EQ(older->plans.size(), 2U);
  auto newer = AttachAndProbe(MakeHello("g", 1));
  EXPECT_EQ(older->closes, 1);
  EXPECT_EQ(newer->plans.size(), 2U) << "the sequence is replayed";
  // The older stream's end is noticed late and means nothing.
  core_.GroupLost(1, absl::UnavailableError("late"), now_);
  EXPECT_EQ(newer->closes, 0);
}

TEST_F(CoreGroupsTest, ServesOnceTheFirstProbeIsAnswered) {
  auto link = std::make_shared<RecordingLink>();
  core_.GroupAttached(1, MakeHello("g", 1), link, now_);
  core_.Advance(now_);
  EXPECT_TRUE(link->plans.empty()) << "no plan before Results is there";
  core_.ResultsConnected("g", 2, now_);
  core_.Advance(now_);
  ASSERT_EQ(link->plans.size(), 1U);
  EXPECT_EQ(link->plans[0]->entries_size(), 0);
  EXPECT_FALSE(core_.serving());
  AnswerOne(*link, "g", 0);
  EXPECT_TRUE(core_.serving());
}

TEST_F(CoreGroupsTest, ResultsMayConnectBeforeTheHello) {
  core_.ResultsConnected("g", 2, now_);
  auto link = std::make_shared<RecordingLink>();
  core_.GroupAttached(1, MakeHello("g", 1), link, now_);
  core_.Advance(now_);
  EXPECT_EQ(link->plans.size(), 1U);
}

TEST_F(CoreGroupsTest, ProbesWhileIdle) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  EXPECT_EQ(core_.NextWake(), now_ + 100);
  Advance(now_ + 99);
  EXPECT_TRUE(link->plans.empty());
  Advance(now_ + 1);
  ASSERT_EQ(link->plans.size(), 1U);
  EXPECT_EQ(link->plans[0]->plan_id(), 2U);
  Advance(now_ + 500);
  EXPECT_EQ(link->plans.size(), 1U) << "one probe at a time";
  EXPECT_EQ(core_.Status(now_).plans_total(), 0U) << "probes are not counted";
}

TEST_F(CoreGroupsTest, AnUnansweredPlanLosesTheGroup) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream stream = Submit(MakeRequest(4, 9));
  EXPECT_EQ(core_.NextWake(), now_ + 1000);
  Advance(now_ + 999);
  EXPECT_EQ(link->closes, 0);
  Advance(now_ + 1);
  EXPECT_EQ(link->closes, 1);
  EXPECT_EQ(link->close_status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(core_.serving());
  EXPECT_EQ(core_.queued(), 1U);
  EXPECT_EQ(core_.Status(now_).groups(0).state(), v1::GROUP_STATE_LOST);
}

TEST_F(CoreGroupsTest, AGroupWithoutResultsIsLostAfterTheStepTimeout) {
  auto link = std::make_shared<RecordingLink>();
  core_.GroupAttached(1, MakeHello("g", 1), link, now_);
  Advance(now_ + 1000);
  EXPECT_EQ(link->closes, 1);
  EXPECT_THAT(std::string(link->close_status.message()), HasSubstr("Results"));
}

TEST_F(CoreGroupsTest, ReplaysALostSequenceFromAllItKnowsAndMarksItExact) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream stream = Submit(MakeRequest(4, 9));
  AnswerOne(*link, "g", 40);
  stream.Take();
  Lose("g");
  EXPECT_EQ(core_.Status(now_).replays(), 1U);
  auto again = AttachAndProbe(MakeHello("g", 1));
  ASSERT_FALSE(again->plans.empty());
  EXPECT_EQ(again->plans[0]->entries(0).ids_size(), 5);
  EXPECT_EQ(again->plans[0]->entries(0).ids(4), 40);
  AnswerOne(*again, "g", 41);
  const Mailbox::Delivery delivery = stream.Take();
  EXPECT_THAT(delivery.ids, ElementsAre(41));
  EXPECT_EQ(delivery.continuity, v1::CONTINUITY_EXACT);
  EXPECT_FALSE(delivery.info.has_value());
}

TEST_F(CoreGroupsTest, AGroupThatIsNotBitwiseContinuesOnlySemantically) {
  v1::Hello hello = MakeHello("g", 1);
  hello.set_bitwise(false);
  auto link = AttachAndProbe(hello);
  Stream stream = Submit(MakeRequest(4, 9));
  Lose("g");
  auto again = AttachAndProbe(hello);
  AnswerOne(*again, "g", 41);
  EXPECT_EQ(stream.Take().continuity, v1::CONTINUITY_SEMANTIC);
}

TEST_F(CoreGroupsTest, ALostSequenceWaitsForItsNumericsThenContinuesElsewhere) {
  auto home = AttachAndProbe(MakeHello("home", 1));
  Stream stream = Submit(MakeRequest(4, 9));
  Lose("home");
  v1::Hello other = MakeHello("other", 1);
  other.set_numerics_id("n2");
  const TimeUs lost = now_;
  auto link = AttachAndProbe(other);
  EXPECT_TRUE(link->plans.empty());
  // Probes go on, and new work is not held up.
  Stream fresh = Submit(MakeRequest(3, 1));
  ASSERT_EQ(link->plans.size(), 1U);
  AnswerOne(*link, "other", 5);
  EXPECT_TRUE(fresh.Take().ended);
  EXPECT_LE(core_.NextWake(), lost + 500);
  while (now_ < lost + 499) {
    Advance(std::min(core_.NextWake(), lost + 499));
    if (!link->plans.empty()) AnswerOne(*link, "other", 5);
  }
  EXPECT_EQ(core_.queued(), 1U);
  Advance(lost + 500);
  EXPECT_EQ(core_.queued(), 0U);
  AnswerOne(*link, "other", 5);
  const Mailbox::Delivery delivery = stream.Take();
  EXPECT_THAT(delivery.ids, ElementsAre(5));
  EXPECT_EQ(delivery.continuity, v1::CONTINUITY_SEMANTIC);
}

TEST_F(CoreGroupsTest, AnotherGroupOfTheSameNumericsTakesOverAtOnce) {
  auto a = AttachAndProbe(MakeHello("a", 1));
  auto b = AttachAndProbe(MakeHello("b", 1));
  Stream stream = Submit(MakeRequest(4, 9));
  ASSERT_EQ(a->plans.size(), 2U);
  Lose("a");
  ASSERT_EQ(b->plans.size(), 2U);
  AnswerOne(*b, "b", 5);
  EXPECT_EQ(stream.Take().continuity, v1::CONTINUITY_EXACT);
}

TEST_F(CoreGroupsTest, NewSequencesGoToTheEmptierGroup) {
  auto a = AttachAndProbe(MakeHello("a", 1));
  auto b = AttachAndProbe(MakeHello("b", 1));
  Submit(MakeRequest(4, 9));
  Submit(MakeRequest(4, 9));
  EXPECT_FALSE(a->plans.empty());
  EXPECT_FALSE(b->plans.empty());
}

TEST_F(CoreGroupsTest, AResumeWaitsForItsNumericsToo) {
  v1::Hello hello = MakeHello("g", 1);
  hello.set_numerics_id("n2");
  auto link = AttachAndProbe(hello);
  SequenceRequest request = MakeRequest(4, 9);
  request.received_ids = {3};
  request.resume_numerics_id = "n1";
  Stream stream = Submit(std::move(request));
  EXPECT_EQ(core_.queued(), 1U);
  const TimeUs begin = now_;
  while (now_ < begin + 500) {
    Advance(core_.NextWake());
    if (!link->plans.empty() && now_ < begin + 500) AnswerOne(*link, "g", 5);
  }
  ASSERT_EQ(core_.queued(), 0U);
  AnswerOne(*link, "g", 5);
  EXPECT_EQ(stream.Take().continuity, v1::CONTINUITY_SEMANTIC);
}

TEST_F(CoreGroupsTest, TwoDyingStepsMakeASuspectThatRunsLastAndAloneAndEndsInternal) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream poison = Submit(MakeRequest(4, 9));
  Lose("g");
  link = AttachAndProbe(MakeHello("g", 1));
  Lose("g");
  Stream innocent = Submit(MakeRequest(4, 1));
  link = AttachAndProbe(MakeHello("g", 1));
  ASSERT_EQ(link->plans.size(), 2U);
  EXPECT_EQ(link->plans[0]->entries_size(), 1) << "not both together";
  EXPECT_EQ(link->plans[1]->entries_size(), 1);
  // The suspect became one before the innocent came: it is first, and alone.
  Lose("g");
  const Mailbox::Delivery end = poison.Take();
  EXPECT_EQ(end.status.code(), absl::StatusCode::kInternal);
  link = AttachAndProbe(MakeHello("g", 1));
  AnswerOne(*link, "g", 5);
  EXPECT_TRUE(innocent.Take().status.ok());
}

TEST_F(CoreGroupsTest, ATokenBetweenTwoDyingStepsClearsASequence) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream stream = Submit(MakeRequest(4, 20));
  for (int i = 0; i < 6; ++i) {
    AnswerOne(*link, "g", 5);
    Lose("g");
    link = AttachAndProbe(MakeHello("g", 1));
  }
  EXPECT_EQ(stream.Take().ids.size(), 6U);
  EXPECT_EQ(core_.sequence_count(), 1U);
}

TEST_F(CoreGroupsTest, OnlyTheStepThatAFaultNamesIsCounted) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Submit(MakeRequest(4, 9));
  AnswerOne(*link, "g", 5);
  Submit(MakeRequest(7, 9));
  AnswerOne(*link, "g", 5);
  ASSERT_EQ(link->plans.size(), 2U);
  ASSERT_EQ(link->plans[0]->entries_size(), 1) << "the first sequence alone";
  ASSERT_EQ(link->plans[1]->entries_size(), 2);
  v1::Fault fault;
  fault.set_group("g");
  fault.set_epoch(link->epoch);
  fault.set_plan_id(link->plans[0]->plan_id());
  core_.GroupFault(fault, now_);
  link = AttachAndProbe(MakeHello("g", 1));
  ASSERT_EQ(link->plans[0]->entries_size(), 2);
  Lose("g");
  // The first was in both dying steps, the second in one: the suspect waits until the second is
  // through.
  link = AttachAndProbe(MakeHello("g", 1));
  ASSERT_EQ(link->plans[0]->entries_size(), 1);
  EXPECT_EQ(link->plans[0]->entries(0).ids_size(), 7);
  EXPECT_EQ(core_.queued(), 1U);
}

TEST_F(CoreGroupsTest, AFaultIsRememberedAndLosesItsEpochOnly) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  v1::Fault fault;
  fault.set_group("g");
  fault.set_epoch(link->epoch - 1);
  fault.set_rank(3);
  fault.set_operation("all-reduce");
  fault.set_text("peer is gone");
  core_.GroupFault(fault, now_);
  EXPECT_EQ(link->closes, 0);
  fault.set_epoch(link->epoch);
  core_.GroupFault(fault, now_);
  EXPECT_EQ(link->closes, 1);
  EXPECT_THAT(core_.Status(now_).groups(0).last_fault(), HasSubstr("all-reduce: peer is gone"));
  fault.set_group("unknown");
  core_.GroupFault(fault, now_);
  EXPECT_EQ(core_.Status(now_).groups_size(), 1);
}

TEST_F(CoreGroupsTest, ResultsOfOldEpochsAndUnknownGroupsAreDropped) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Stream stream = Submit(MakeRequest(4, 9));
  v1::StepResult old = Answer(*link->plans[0], 5);
  old.set_epoch(old.epoch() - 1);
  core_.GroupResult("g", old, now_);
  core_.GroupResult("nobody", old, now_);
  EXPECT_EQ(link->closes, 0);
  EXPECT_TRUE(stream.Take().ids.empty());
}

TEST_F(CoreGroupsTest, AResultOutOfOrderLosesTheGroup) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  Submit(MakeRequest(4, 9));
  ASSERT_EQ(link->plans.size(), 2U);
  core_.GroupResult("g", Answer(*link->plans[1], 5), now_);
  EXPECT_EQ(link->closes, 1);
  EXPECT_EQ(link->close_status.code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CoreGroupsTest, LosingResultsWithPlansInFlightLosesTheGroup) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  const uint64_t results = core_.groups().at("g")->results_connection;
  core_.ResultsLost("g", results + 1, now_);
  core_.ResultsLost("nobody", results, now_);
  EXPECT_TRUE(core_.serving());
  Submit(MakeRequest(4, 9));
  core_.ResultsLost("g", results, now_);
  EXPECT_EQ(link->closes, 1);
}

TEST_F(CoreGroupsTest, LosingResultsWhileIdlePausesTheGroup) {
  auto link = AttachAndProbe(MakeHello("g", 1));
  core_.ResultsLost("g", core_.groups().at("g")->results_connection, now_);
  EXPECT_FALSE(core_.serving());
  Submit(MakeRequest(4, 9));
  EXPECT_TRUE(link->plans.empty());
  core_.ResultsConnected("g", 77, now_);
  core_.Advance(now_);
  EXPECT_EQ(link->plans.size(), 2U);
  EXPECT_EQ(link->closes, 0);
}

TEST_F(CoreGroupsTest, LimitsStayThoseOfTheLastGroup) {
  EXPECT_FALSE(core_.limits().attached);
  EXPECT_EQ(core_.limits().context_length, 0U);
  Attach(MakeHello("g", 1));
  EXPECT_TRUE(core_.limits().attached);
  EXPECT_EQ(core_.limits().context_length, 256U);
  EXPECT_EQ(core_.limits().kv_tokens, 64U * 16U);
  Lose("g");
  EXPECT_FALSE(core_.limits().attached);
  EXPECT_EQ(core_.limits().context_length, 256U);
}

TEST_F(CoreGroupsTest, TellsHowLongTheGroupLoaded) {
  v1::Progress progress;
  progress.set_group("g");
  core_.GroupProgress(1, progress, now_);
  core_.GroupProgress(1, progress, now_ + 400'000);
  core_.GroupAttached(1, MakeHello("g", 1), std::make_shared<RecordingLink>(), now_ + 2'500'000);
  EXPECT_EQ(core_.Status(now_).groups(0).load_ms(), 2500U);
  core_.GroupLost(1, absl::UnavailableError("gone"), now_ + 3'000'000);
  core_.GroupAttached(2, MakeHello("g", 1), std::make_shared<RecordingLink>(), now_ + 9'000'000);
  EXPECT_EQ(core_.Status(now_).groups(0).load_ms(), 2500U) << "it only dialled again";
}

TEST_F(CoreGroupsTest, ShowsProgressWhileLoadingAndBoundsTheTableOfNames) {
  ReportNames(200);
  const v1::StatusResponse status = core_.Status(now_);
  EXPECT_EQ(status.groups_size(), 64);
  EXPECT_EQ(status.groups(0).state(), v1::GROUP_STATE_LOADING);
  EXPECT_EQ(status.groups(0).progress().phase(), "reading weights");
  core_.GroupLost(kFirstConnection, absl::UnavailableError("gone"), now_);
  EXPECT_EQ(core_.groups().at("n0")->state, v1::GROUP_STATE_LOST);
  ReportNames(200, "m");
  EXPECT_EQ(core_.groups().count("n0"), 0U) << "a name without a connection makes room";
  EXPECT_EQ(core_.groups().count("m0"), 1U);
  EXPECT_EQ(core_.Status(now_).groups_size(), 64);
}

TEST_F(CoreGroupsTest, NamesThatOnlyReportProgressDoNotPushOutLostAndAttachedGroups) {
  Attach(MakeHello("lost", 1));
  Attach(MakeHello("there", 1));
  Lose("lost");
  ReportNames(100);
  const v1::StatusResponse status = core_.Status(now_);
  EXPECT_EQ(status.groups_size(), 64);
  EXPECT_EQ(core_.groups().at("lost")->state, v1::GROUP_STATE_LOST);
  EXPECT_TRUE(core_.groups().at("there")->ready());
}

TEST_F(CoreGroupsTest, AGroupThatAttachesToAFullTableTakesThePlaceOfANameThatNeverDid) {
  Attach(MakeHello("lost", 1));
  Lose("lost");
  ReportNames(100);
  Attach(MakeHello("new", 1));
  EXPECT_TRUE(core_.groups().at("new")->ready());
  EXPECT_EQ(core_.groups().count("lost"), 1U);
}

TEST_F(CoreGroupsTest, NamesThatOnlyReportProgressDoNotPushOutAGroupsResultsStream) {
  core_.ResultsConnected("coming", 1, now_);
  ReportNames(100);
  EXPECT_EQ(core_.groups().at("coming")->results_connection, 1U);
}

TEST_F(CoreGroupsTest, ALongFaultIsCutBetweenCharacters) {
  Attach(MakeHello("g", 1));
  v1::Fault fault;
  fault.set_group("g");
  // Each prefix puts the limit at another byte of the two-byte characters.
  for (const char* operation : {"", "x"}) {
    fault.set_operation(operation);
    std::string text;
    for (int i = 0; i < 4000; ++i) text += "\xc3\xa9";
    fault.set_text(text);
    core_.GroupFault(fault, now_);
    const std::string& shown = core_.groups().at("g")->last_fault;
    EXPECT_LE(shown.size(), 5000U);
    EXPECT_EQ(shown.substr(shown.size() - 2), "\xc3\xa9");
  }
}

}  // namespace
}  // namespace pergola
