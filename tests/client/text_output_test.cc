// What people read: progress, status, filtered group output, decoded errors.
#include "client/error_text.h"
#include "client/group_output.h"
#include "client/progress_line.h"
#include "client/status_text.h"
#include "client/utf8.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Utf8Test, AcceptsEveryLengthOfCharacter) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xED\x9F\xBF\xF4\x8F\xBF\xBF";
  EXPECT_EQ(FirstInvalidUtf8(text), text.size());
  EXPECT_EQ(FirstInvalidUtf8(""), 0U);
}

TEST(Utf8Test, FindsTheFirstBadByte) {
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xED\xA0\x80",
                          "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xC3",
                          "\xE2\x82", "\xF0\x9F\x98", "\xC3z", "\xE2\x82z", "\xFF"}) {
    EXPECT_EQ(FirstInvalidUtf8(std::string("ok ") + bad), 3U) << testing::PrintToString(bad);
  }
}

grpc::Status WithDetails(const std::string& details) {
  return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "bad request", details);
}

TEST(ErrorTextTest, ShowsEveryFieldViolation) {
  google::rpc::BadRequest bad;
  auto* first = bad.add_field_violations();
  first->set_field("sampling.top_p");
  first->set_description("2 is above 1");
  auto* second = bad.add_field_violations();
  second->set_field("stop.max_new_tokens");
  second->set_description("0 is below 1");
  google::rpc::Status status;
  status.add_details()->PackFrom(bad);
  const std::string text = ErrorText(WithDetails(status.SerializeAsString()));
  EXPECT_EQ(text,
            "INVALID_ARGUMENT: bad request\n  sampling.top_p: 2 is above 1\n"
            "  stop.max_new_tokens: 0 is below 1");
  EXPECT_FALSE(HasRetryInfo(WithDetails(status.SerializeAsString())));
}

TEST(ErrorTextTest, ShowsWhenToTryAgainAndWhy) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_nanos(250000000);
  google::rpc::ErrorInfo info;
  info.set_reason("QUEUE_FULL");
  google::rpc::Status status;
  status.add_details()->PackFrom(retry);
  status.add_details()->PackFrom(info);
  const grpc::Status error = WithDetails(status.SerializeAsString());
  EXPECT_THAT(ErrorText(error), HasSubstr("try again in 0.25 s"));
  EXPECT_THAT(ErrorText(error), HasSubstr("QUEUE_FULL"));
  EXPECT_TRUE(HasRetryInfo(error));
}

TEST(ErrorTextTest, LeavesOutDetailsThatDoNotDecode) {
  EXPECT_EQ(ErrorText(WithDetails("\xFF\xFF garbage")), "INVALID_ARGUMENT: bad request");
  EXPECT_EQ(ErrorText(WithDetails("")), "INVALID_ARGUMENT: bad request");
  google::rpc::Status status;
  auto* any = status.add_details();
  any->set_type_url("type.googleapis.com/google.rpc.BadRequest");
  any->set_value("\xFF");
  EXPECT_EQ(ErrorText(WithDetails(status.SerializeAsString())), "INVALID_ARGUMENT: bad request");
}

TEST(ErrorTextTest, NamesCodesOutsideTheSpecificationByNumber) {
  EXPECT_EQ(CodeName(14), "UNAVAILABLE");
  EXPECT_EQ(CodeName(99), "code 99");
}

const char kFrame[] = "--------------------------------------------------------------------------";

TEST(GroupOutputTest, PassesPlainLinesOn) {
  GroupOutput output;
  EXPECT_THAT(output.Take("hello"), ElementsAre("hello"));
  EXPECT_EQ(output.reason(), "hello");
}

TEST(GroupOutputTest, LeavesOutTheParagraphThatARankFailed) {
  GroupOutput output;
  EXPECT_THAT(output.Take(kFrame), IsEmpty());
  EXPECT_THAT(output.Take("Primary job  terminated normally, but 1 process returned"), IsEmpty());
  EXPECT_THAT(output.Take(kFrame), IsEmpty());
  EXPECT_THAT(output.Finish(), IsEmpty());
  EXPECT_EQ(output.reason(), "");
}

TEST(GroupOutputTest, KeepsOtherParagraphs) {
  GroupOutput output;
  output.Take(kFrame);
  output.Take("There are not enough slots available in the system");
  EXPECT_THAT(output.Take(kFrame),
              ElementsAre(kFrame, "There are not enough slots available in the system", kFrame));
  EXPECT_THAT(output.reason(), HasSubstr("not enough slots"));
}

TEST(GroupOutputTest, ShowsAFrameThatNeverCloses) {
  GroupOutput output;
  output.Take(kFrame);
  EXPECT_THAT(output.Take("half"), IsEmpty());
  EXPECT_THAT(output.Finish(), ElementsAre(kFrame, "half"));
  GroupOutput endless;
  endless.Take(kFrame);
  size_t shown = 0;
  for (int i = 0; i < 100; ++i) shown += endless.Take("line").size();
  EXPECT_EQ(shown, 101U);
}

TEST(GroupOutputTest, ReasonIsTheLastErrorLineNotTheLastLine) {
  GroupOutput output;
  output.Take("2026-01-01 00:00:00.000 E worker tp 99 is above the 9 heads");
  output.Take("2026-01-01 00:00:00.001 I worker ending");
  EXPECT_EQ(output.reason(), "worker tp 99 is above the 9 heads");
}

v1::Progress Half() {
  v1::Progress progress;
  progress.set_phase("reading weights");
  progress.set_bytes_done(5000000);
  progress.set_bytes_total(10000000);
  return progress;
}

TEST(ProgressLineTest, ShowsShareAndMegabytes) {
  EXPECT_EQ(ProgressText(Half()),
            "reading weights [###############...............]  50 % 5.0 of 10.0 MB");
}

TEST(ProgressLineTest, SurvivesNumbersThatCannotBe) {
  v1::Progress progress = Half();
  progress.set_bytes_done(UINT64_MAX);
  EXPECT_THAT(ProgressText(progress), HasSubstr("100 %"));
  progress.set_bytes_total(0);
  EXPECT_EQ(ProgressText(progress), "reading weights");
}

TEST(ProgressLineTest, PrintsALineNowAndThenWithoutATerminal) {
  ProgressLine line(/*terminal=*/false);
  const ProgressLine::Time start = ProgressLine::Time{} + std::chrono::hours(1);
  EXPECT_THAT(line.Update(Half(), start), HasSubstr("50 %"));
  EXPECT_EQ(line.Update(Half(), start + std::chrono::seconds(9)), "") << "nothing changed";
  v1::Progress more = Half();
  more.set_bytes_done(6000000);
  EXPECT_EQ(line.Update(more, start + std::chrono::seconds(1)), "") << "too early";
  EXPECT_THAT(line.Update(more, start + std::chrono::seconds(2)), HasSubstr("60 %"));
  EXPECT_EQ(line.Interrupt(), "");
}

TEST(ProgressLineTest, RedrawsOnATerminalAndIsClearedForOtherLines) {
  ProgressLine line(/*terminal=*/true);
  EXPECT_THAT(line.Update(Half(), {}), HasSubstr("\r"));
  EXPECT_THAT(line.Interrupt(), HasSubstr("\r"));
  EXPECT_EQ(line.Interrupt(), "");
}

TEST(StatusTextTest, ShowsStagesHostsAndBlocks) {
  v1::StatusResponse status;
  status.set_model("tiny");
  status.set_serving(true);
  v1::GroupStatus* group = status.add_groups();
  group->set_name("group-0");
  group->set_state(v1::GROUP_STATE_READY);
  group->set_blocks_total(10);
  group->set_blocks_used(3);
  v1::Stage* stage = group->mutable_layout()->add_stages();
  stage->set_host("node-b");
  stage->set_first_layer(4);
  stage->set_layer_count(4);
  stage->add_pids(77);
  const std::string text = StatusText(status);
  EXPECT_THAT(text, HasSubstr("tiny: serving"));
  EXPECT_THAT(text, HasSubstr("group group-0: ready"));
  EXPECT_THAT(text, HasSubstr("blocks 3 of 10 used"));
  EXPECT_THAT(text, HasSubstr("stage 0: host node-b, layers 4 to 7, pids 77"));
}

TEST(StatusTextTest, SaysThatNoGroupHasAttached) {
  EXPECT_THAT(StatusText(v1::StatusResponse()), HasSubstr("no group has attached"));
}

}  // namespace
}  // namespace pergola
