#include "coordinator/doors/generation_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
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

class BatchTest : public CoordinatorTest {
 protected:
  grpc::Status Call(const v1::GenerateBatchRequest& request) {
    grpc::ClientContext context;
    return generation_->GenerateBatch(&context, request, &response_);
  }
  v1::GenerateBatchResponse response_;
};

TEST_F(BatchTest, AnswersInOrderEachWithItsOwnStatus) {
  StartServing();
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt("one", 50);
  *batch.add_requests() = Prompt("two", 0);
  *batch.add_requests() = Prompt("\xff", 1);
  *batch.add_requests() = Prompt("four", 5);
  const grpc::Status status = Call(batch);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response_.results_size(), 4);
  EXPECT_EQ(response_.results(0).completions(0).text(), Continuation(PromptIds("one"), 50));
  EXPECT_EQ(response_.results(0).status().code(), 0);
  EXPECT_EQ(response_.results(0).info().prompt_token_count(), 4U);
  EXPECT_EQ(response_.results(0).completions(0).finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(ViolationsOf(response_.results(1).status()),
              ElementsAre(HasSubstr("requests[1].stop.max_new_tokens: 0")));
  EXPECT_THAT(response_.results(1).completions(), IsEmpty());
  EXPECT_THAT(ViolationsOf(response_.results(2).status()),
              ElementsAre("requests[2].text: invalid UTF-8 at byte 0"));
  EXPECT_EQ(response_.results(3).completions(0).text(), Continuation(PromptIds("four"), 5));
}

TEST_F(BatchTest, FailsOnlyForItsOwnLimits) {
  StartServing();
  EXPECT_THAT(ViolationsOf(Details(Call({}))), ElementsAre("requests: empty; 1 to 256 are needed"));
  v1::GenerateBatchRequest batch;
  for (int i = 0; i < 256; ++i) batch.add_requests();
  EXPECT_TRUE(Call(batch).ok()) << "256 wrong items are 256 answers";
  EXPECT_EQ(response_.results_size(), 256);
  batch.add_requests();
  EXPECT_THAT(ViolationsOf(Details(Call(batch))),
              ElementsAre("requests: more than the limit of 256"));
}

TEST_F(BatchTest, CancelReachesEveryItem) {
  StartServing();
  group_->SetPaused(true);
  v1::GenerateBatchRequest batch;
  for (int i = 0; i < 20; ++i) *batch.add_requests() = Prompt("x", 4000);
  grpc::ClientContext context;
  std::thread call([&] { generation_->GenerateBatch(&context, batch, &response_); });
  EXPECT_TRUE(WaitFor([&] { return Status().requests_total() == 20; }));
  context.TryCancel();
  call.join();
  group_->SetPaused(false);
  EXPECT_TRUE(WaitFor([&] {
    const v1::StatusResponse status = Status();
    return status.running() == 0 && status.queued() == 0 && status.groups(0).blocks_used() == 0;
  }));
}

TEST_F(BatchTest, TheDeadlineReachesEveryItem) {
  StartServing();
  group_->SetPaused(true);
  v1::GenerateBatchRequest batch;
  for (int i = 0; i < 20; ++i) *batch.add_requests() = Prompt("x", 4000);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_EQ(generation_->GenerateBatch(&context, batch, &response_).error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  group_->SetPaused(false);
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 0 && Status().queued() == 0; }));
}

TEST_F(BatchTest, GathersEverySequenceOfAnItem) {
  StartServing();
  v1::GenerateBatchRequest batch;
  *batch.add_requests() = Prompt("n", 6);
  batch.mutable_requests(0)->mutable_sampling()->set_temperature(1);
  batch.mutable_requests(0)->mutable_sampling()->set_n(3);
  ASSERT_TRUE(Call(batch).ok());
  const v1::GenerateBatchResult& result = response_.results(0);
  ASSERT_EQ(result.completions_size(), 3);
  for (uint32_t i = 0; i < 3; ++i) {
    const v1::Completion& completion = result.completions(static_cast<int>(i));
    EXPECT_EQ(completion.text(), Continuation(PromptIds("n"), 6, i));
    EXPECT_EQ(completion.finish().reason(), v1::FINISH_REASON_LENGTH);
  }
}

class SequencesTest : public CoordinatorTest {
 protected:
  // What came of each index: text, finish, log-probabilities.
  struct Sequence {
    std::string text;
    std::vector<float> logprobs;
    int finishes = 0;
  };
  std::map<uint32_t, Sequence> ByIndex(const Stream& stream) {
    std::map<uint32_t, Sequence> sequences;
    for (const v1::GenerateResponse& message : stream.messages) {
      Sequence& sequence = sequences[message.index()];
      EXPECT_EQ(sequence.finishes, 0) << "nothing follows the finish of an index";
      sequence.text += message.text();
      for (const v1::Logprobs& logprobs : message.logprobs()) {
        sequence.logprobs.push_back(logprobs.logprob());
      }
      sequence.finishes += message.has_finish() ? 1 : 0;
    }
    return sequences;
  }
  static v1::GenerateRequest Sampled(const std::string& text, uint32_t max_new_tokens) {
    v1::GenerateRequest request = Prompt(text, max_new_tokens);
    request.mutable_sampling()->set_temperature(1);
    return request;
  }
};

TEST_F(SequencesTest, StreamsEachOfNUnderItsIndex) {
  StartServing();
  v1::GenerateRequest request = Sampled("several", 40);
  request.mutable_sampling()->set_n(4);
  const Stream stream = Generate(request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  const auto sequences = ByIndex(stream);
  ASSERT_EQ(sequences.size(), 4U);
  int infos = 0;
  for (const v1::GenerateResponse& message : stream.messages) infos += message.has_info() ? 1 : 0;
  EXPECT_EQ(infos, 1);
  EXPECT_TRUE(stream.messages.front().has_info());
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sequences.at(i).text, Continuation(PromptIds("several"), 40, i)) << i;
    EXPECT_EQ(sequences.at(i).finishes, 1);
    EXPECT_THAT(sequences.at(i).logprobs, IsEmpty());
  }
}

TEST_F(SequencesTest, ReturnsTheMostProbableOfBestOf) {
  StartServing();
  v1::GenerateRequest request = Sampled("choose", 12);
  request.mutable_sampling()->set_n(2);
  request.mutable_sampling()->set_best_of(5);
  const Stream stream = Generate(request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  // The judge: the same sum, from the texts that the fake group gives.
  std::vector<std::pair<double, std::string>> candidates;
  for (uint32_t i = 0; i < 5; ++i) {
    const std::string text = Continuation(PromptIds("choose"), 12, i);
    double sum = 0;
    for (const char c : text) sum += static_cast<double>(LogprobOf(c));
    candidates.emplace_back(-sum, text);
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  ASSERT_EQ(stream.messages.size(), 2U);
  EXPECT_EQ(stream.messages[0].text(), candidates[0].second);
  EXPECT_EQ(stream.messages[1].text(), candidates[1].second);
  EXPECT_TRUE(stream.messages[0].has_info());
  EXPECT_EQ(stream.messages[1].index(), 1U);
  EXPECT_EQ(stream.messages[0].logprobs_size(), 0) << "not asked for";
}

TEST_F(SequencesTest, TellsLogProbabilitiesOfNewAndPromptIds) {
  StartServing();
  v1::GenerateRequest request = Prompt("score me", 5);
  request.mutable_sampling()->set_logprobs(2);
  request.set_prompt_logprobs(1);
  const Stream stream = Generate(request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  std::vector<float> told;
  std::vector<float> scored;
  for (const v1::GenerateResponse& message : stream.messages) {
    EXPECT_EQ(message.ids_size(), message.logprobs_size());
    for (const v1::Logprobs& logprobs : message.logprobs()) {
      EXPECT_EQ(logprobs.top_ids_size(), 2);
      told.push_back(logprobs.logprob());
    }
    for (const v1::Logprobs& logprobs : message.prompt_logprobs()) {
      EXPECT_EQ(logprobs.top_ids_size(), 1);
      scored.push_back(logprobs.logprob());
    }
  }
  std::vector<float> expected;
  for (const int32_t id : stream.ids) expected.push_back(LogprobOf(id));
  EXPECT_EQ(told, expected);
  expected.clear();
  const std::vector<int32_t> prompt = PromptIds("score me");
  for (size_t i = 1; i < prompt.size(); ++i) expected.push_back(LogprobOf(prompt[i]));
  EXPECT_EQ(scored, expected);
}

TEST_F(SequencesTest, ScoresAPromptWithoutANewToken) {
  StartServing();
  v1::GenerateRequest request = Prompt("only score", 0);
  request.set_prompt_logprobs(0);
  const Stream stream = Generate(request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_THAT(stream.ids, IsEmpty());
  int scored = 0;
  for (const v1::GenerateResponse& message : stream.messages) {
    scored += message.prompt_logprobs_size();
  }
  EXPECT_EQ(scored, static_cast<int>(PromptIds("only score").size()) - 1);
  EXPECT_EQ(stream.messages.back().finish().reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(SequencesTest, EchoesThePrompt) {
  StartServing();
  v1::GenerateRequest request = Prompt("echo", 4);
  request.set_echo(true);
  EXPECT_EQ(Generate(request).text, "echo" + Continuation(PromptIds("echo"), 4));
}

TEST_F(SequencesTest, ResumesOnlyWhatHasNotFinished) {
  StartServing();
  v1::GenerateRequest request = Sampled("", 20);
  request.clear_text();
  request.mutable_sampling()->set_n(2);
  v1::Resume& resume = *request.mutable_resume();
  for (const int32_t id : PromptIds("again")) resume.mutable_prompt()->add_ids(id);
  resume.set_numerics_id("numerics");
  resume.set_finished(true);
  const std::string whole = Continuation(PromptIds("again"), 20, 1);
  v1::Received& other = *resume.add_others();
  for (int i = 0; i < 7; ++i) other.mutable_ids()->add_ids(whole[i]);
  other.set_text_bytes(7);
  const Stream stream = Generate(request);
  ASSERT_TRUE(stream.status.ok()) << stream.status.error_message();
  const auto sequences = ByIndex(stream);
  ASSERT_EQ(sequences.size(), 1U);
  EXPECT_EQ(sequences.at(1).text, whole.substr(7));
}

TEST_F(SequencesTest, CancellingEndsAllSequences) {
  StartServing();
  group_->SetPaused(true);
  v1::GenerateRequest request = Sampled("all", 400);
  request.mutable_sampling()->set_n(5);
  grpc::ClientContext context;
  std::thread call([&] { Generate(request, &context); });
  EXPECT_TRUE(WaitFor([&] { return Status().requests_total() == 5; }));
  context.TryCancel();
  call.join();
  group_->SetPaused(false);
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 0 && Status().queued() == 0; }));
}

// A write that fails drops what waits behind it, and must not drop the news of the end with it.
TEST_F(SequencesTest, CallsCancelledWithMessagesLeftGiveTheirPlacesBack) {
  server_options_.max_calls = 1;
  StartServing();
  v1::GenerateRequest several = Sampled("all", 400);
  several.mutable_sampling()->set_n(5);
  for (int i = 0; i < 30; ++i) {
    grpc::ClientContext context;
    const auto reader = generation_->Generate(&context, several);
    v1::GenerateResponse message;
    EXPECT_TRUE(reader->Read(&message));
    context.TryCancel();
    reader->Finish();
    ASSERT_TRUE(WaitFor([&] { return Generate(Prompt("x", 1)).status.ok(); }));
  }
}

TEST_F(SequencesTest, RefusesALongTenant) {
  StartServing();
  grpc::ClientContext context;
  context.AddMetadata(kTenantKey, std::string(129, 't'));
  const Stream stream = Generate(Prompt("x", 1), &context);
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(stream.status.error_message(), HasSubstr("pergola-tenant has 129 bytes"));
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
