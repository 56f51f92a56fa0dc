#include "coordinator/doors/generation_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class GenerateTest : public CoordinatorTest {};

TEST_F(GenerateTest, StreamsTheWholeTextAndEndsOnce) {
  StartServing();
  const Stream stream = Generate(Prompt("hello", 40));
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text, Continuation(PromptIds("hello"), 40));
  EXPECT_THAT(stream.ids, SizeIs(40));
  ASSERT_FALSE(stream.messages.empty());
  const v1::StreamInfo& info = stream.messages.front().info();
  EXPECT_EQ(info.model(), "bytes");
  EXPECT_EQ(info.numerics_id(), "numerics");
  EXPECT_EQ(info.prompt_token_count(), 6U);
  EXPECT_THAT(info.request_id(), SizeIs(16));
  EXPECT_FALSE(info.has_prompt()) << "not resumable";
  for (size_t i = 0; i < stream.messages.size(); ++i) {
    EXPECT_EQ(stream.messages[i].has_finish(), i + 1 == stream.messages.size());
    EXPECT_EQ(stream.messages[i].has_info(), i == 0);
  }
  const v1::Finish& finish = stream.messages.back().finish();
  EXPECT_EQ(finish.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(finish.usage().completion_tokens(), 40U);
}

TEST_F(GenerateTest, ContinuesABrokenStreamWithoutSendingAByteTwice) {
  StartServing();
  v1::GenerateRequest request = Prompt("abc", 30);
  request.set_resumable(true);
  const Stream whole = Generate(request);
  ASSERT_TRUE(whole.status.ok());
  const v1::StreamInfo& info = whole.messages.front().info();
  EXPECT_THAT(info.prompt().ids(), ElementsAre(kBos, 'a', 'b', 'c'));

  v1::GenerateRequest again = Prompt("", 30);
  again.clear_prompt();
  *again.mutable_resume()->mutable_prompt() = info.prompt();
  for (int i = 0; i < 10; ++i) again.mutable_resume()->mutable_received()->add_ids(whole.ids[i]);
  again.mutable_resume()->set_text_bytes(10);
  again.mutable_resume()->set_numerics_id(info.numerics_id());
  const Stream rest = Generate(again);
  ASSERT_TRUE(rest.status.ok()) << rest.status.error_message();
  EXPECT_EQ(rest.text, whole.text.substr(10));
  int exact = 0;
  for (const v1::GenerateResponse& message : rest.messages) {
    if (message.continuity() == v1::CONTINUITY_EXACT) ++exact;
  }
  EXPECT_EQ(exact, 1) << "told once, where it took effect";
}

TEST_F(GenerateTest, StopsAtAStringThatIsNotShown) {
  StartServing();
  const std::string text = Continuation(PromptIds("hello"), 40);
  v1::GenerateRequest request = Prompt("hello", 40);
  request.mutable_stop()->add_strings(text.substr(20, 4));
  const Stream stream = Generate(request);
  ASSERT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.text, text.substr(0, text.find(text.substr(20, 4))));
  EXPECT_EQ(stream.messages.back().finish().reason(), v1::FINISH_REASON_STOP_STRING);
}

TEST_F(GenerateTest, TellsViolationsInStatusDetails) {
  StartServing();
  v1::GenerateRequest request = Prompt("x", 0);
  request.mutable_sampling()->set_top_p(2);
  const Stream stream = Generate(request);
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const google::rpc::Status details = Details(stream.status);
  EXPECT_EQ(details.code(), 3);
  EXPECT_EQ(details.message(), stream.status.error_message());
  EXPECT_THAT(ViolationsOf(details),
              ElementsAre("sampling.top_p: 2 is not in (0, 1]",
                          "stop.max_new_tokens: 0 is not in 1 to the context length of 4096"));
}

TEST_F(GenerateTest, InvalidUtf8IsAnInvalidArgumentNotUnimplemented) {
  StartServing();
  const Stream stream = Generate(Prompt("a\xff", 1));
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(ViolationsOf(Details(stream.status)), ElementsAre("text: invalid UTF-8 at byte 1"));
}

TEST_F(GenerateTest, UnknownModelIsNotFound) {
  StartServing();
  v1::GenerateRequest request = Prompt("x", 1);
  request.set_model("other");
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(GenerateTest, AVanishedClientFreesItsSlot) {
  StartServing();
  {
    grpc::ClientContext context;
    const auto reader = generation_->Generate(&context, Prompt("x", 4000));
    v1::GenerateResponse message;
    ASSERT_TRUE(reader->Read(&message));
    group_->SetPaused(true);
    EXPECT_EQ(Status().running(), 1U);
    context.TryCancel();
    EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  group_->SetPaused(false);
  EXPECT_TRUE(WaitFor([&] {
    const v1::StatusResponse status = Status();
    return status.running() == 0 && status.groups(0).slots_used() == 0 &&
           status.groups(0).blocks_used() == 0;
  }));
}

TEST_F(GenerateTest, ADeadlineEndsAQueuedRequest) {
  StartCoordinator();  // without a group: it waits
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_EQ(Generate(Prompt("x", 1), &context).status.error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(WaitFor([&] { return Status().queued() == 0; }));
}

// A client that takes its time: what it has not taken yet stays with the server.
class SlowClientTest : public CoordinatorTest {
 protected:
  void StartNarrow() {
    StartServing();
    grpc::ChannelArguments narrow;
    narrow.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1);
    narrow.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    narrow.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    generation_ = v1::Generation::NewStub(grpc::CreateCustomChannel(
        server_->public_address(), grpc::InsecureChannelCredentials(), narrow));
  }
};

TEST_F(SlowClientTest, GetsManyTokensInAMessage) {
  StartNarrow();
  const uint32_t tokens = kMailboxTokens;
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, Prompt("x", tokens));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::string text = message.text();
  ASSERT_TRUE(WaitFor([&] { return Status().running() == 0; })) << "the sequence waits for nobody";
  uint32_t messages = 1;
  for (; reader->Read(&message); ++messages) text += message.text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, Continuation(PromptIds("x"), tokens));
  EXPECT_LT(messages, tokens / 2);
}

TEST_F(SlowClientTest, PausesItsOwnSequenceOnly) {
  StartNarrow();
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, Prompt("x", 4000));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  std::string text = message.text();
  ASSERT_TRUE(WaitFor([&] { return Status().paused() == 1; }));
  EXPECT_EQ(Generate(Prompt("y", 100)).text, Continuation(PromptIds("y"), 100));
  EXPECT_EQ(Status().paused(), 1U);
  while (reader->Read(&message)) text += message.text();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(text, Continuation(PromptIds("x"), 4000));
}

TEST_F(GenerateTest, AFullQueueSaysWhenToComeBack) {
  engine_options_.max_queued_sequences = 1;
  StartCoordinator();
  grpc::ClientContext first;
  const auto waiting = generation_->Generate(&first, Prompt("x", 1));
  ASSERT_TRUE(WaitFor([&] { return Status().queued() == 1; }));
  const Stream refused = Generate(Prompt("y", 1));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(Details(refused.status).details_size(), 2) << "RetryInfo and ErrorInfo";
  first.TryCancel();
  waiting->Finish();
}

TEST_F(GenerateTest, CallsInProgressAreBounded) {
  server_options_.max_calls = 1;
  StartCoordinator();
  grpc::ClientContext first;
  const auto waiting = generation_->Generate(&first, Prompt("x", 1));
  ASSERT_TRUE(WaitFor([&] { return Status().queued() == 1; }));
  EXPECT_THAT(Generate(Prompt("y", 1)).status.error_message(), HasSubstr("are in progress: 1"));
  first.TryCancel();
  waiting->Finish();
  EXPECT_TRUE(WaitFor([&] {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(20));
    return Generate(Prompt("y", 1), &context).status.error_code() ==
           grpc::StatusCode::DEADLINE_EXCEEDED;
  })) << "the place is free again";
}

TEST_F(GenerateTest, HeadersGoOutWithAdmission) {
  StartCoordinator();  // no group: admitted, but no token
  grpc::ClientContext context;
  const auto reader = generation_->Generate(&context, Prompt("x", 1));
  reader->WaitForInitialMetadata();
  EXPECT_EQ(Status().queued(), 1U);
  context.TryCancel();
  reader->Finish();
}

class TextCallsTest : public CoordinatorTest {};

TEST_F(TextCallsTest, TokenizeAndBack) {
  StartCoordinator();
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text("hi");
  v1::TokenizeResponse ids;
  ASSERT_TRUE(generation_->Tokenize(&context, request, &ids).ok());
  EXPECT_THAT(ids.ids(), ElementsAre(kBos, 'h', 'i'));

  grpc::ClientContext plain;
  request.set_add_special_tokens(false);
  ASSERT_TRUE(generation_->Tokenize(&plain, request, &ids).ok());
  EXPECT_THAT(ids.ids(), ElementsAre('h', 'i'));

  grpc::ClientContext back;
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_ids() = ids.ids();
  v1::DetokenizeResponse text;
  ASSERT_TRUE(generation_->Detokenize(&back, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "hi");
}

TEST_F(TextCallsTest, RefuseWhatIsNoTextAndNoId) {
  StartCoordinator();
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text("\xff");
  v1::TokenizeResponse ids;
  const grpc::Status status = generation_->Tokenize(&context, request, &ids);
  EXPECT_THAT(ViolationsOf(Details(status)), ElementsAre("text: invalid UTF-8 at byte 0"));

  grpc::ClientContext named;
  request.set_text("x");
  request.set_model("other");
  EXPECT_EQ(generation_->Tokenize(&named, request, &ids).error_code(), grpc::StatusCode::NOT_FOUND);

  grpc::ClientContext back;
  v1::DetokenizeRequest detokenize;
  detokenize.add_ids(260);
  v1::DetokenizeResponse text;
  const grpc::Status refused = generation_->Detokenize(&back, detokenize, &text);
  EXPECT_THAT(ViolationsOf(Details(refused)), ElementsAre(HasSubstr("ids: id 260 at [0]")));
}

TEST_F(TextCallsTest, AFullTextPoolRefuses) {
  server_options_.max_text_jobs = 0;
  StartCoordinator();
  const Stream stream = Generate(Prompt("x", 1));
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  grpc::ClientContext context;
  v1::TokenizeResponse ids;
  EXPECT_EQ(generation_->Tokenize(&context, {}, &ids).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(TextCallsTest, ModelInfoNeedsAGroup) {
  StartCoordinator();
  v1::ModelInfoResponse info;
  {
    grpc::ClientContext context;
    EXPECT_EQ(generation_->ModelInfo(&context, {}, &info).error_code(),
              grpc::StatusCode::UNAVAILABLE);
  }
  AttachGroup();
  grpc::ClientContext context;
  ASSERT_TRUE(generation_->ModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.model(), "bytes");
  EXPECT_EQ(info.context_length(), 4096U);
  EXPECT_THAT(info.eos_ids(), ElementsAre(kEos));
  EXPECT_EQ(info.numerics_id(), "numerics");
  EXPECT_TRUE(info.bitwise());
  EXPECT_FALSE(info.defaults().has_temperature()) << "greedy";
}

}  // namespace
}  // namespace pergola
