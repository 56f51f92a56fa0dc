#include "coordinator/doors/running_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

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
  const auto begins_and_is_cancelled = [&] {
    grpc::ClientContext context;
    const auto reader = generation_->Generate(&context, several);
    v1::GenerateResponse message;
    const bool began = reader->Read(&message);
    context.TryCancel();
    reader->Finish();
    return began;
  };
  // The one place is free again a moment after a client's end of the call.
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(WaitFor(begins_and_is_cancelled)) << i;
}

TEST_F(SequencesTest, RefusesALongTenant) {
  StartServing();
  grpc::ClientContext context;
  context.AddMetadata(kTenantKey, std::string(129, 't'));
  const Stream stream = Generate(Prompt("x", 1), &context);
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(stream.status.error_message(), HasSubstr("pergola-tenant has 129 bytes"));
}

TEST_F(SequencesTest, BestOfHoldsBackNoMoreThanTheBound) {
  server_options_.max_held_result_bytes = 10'000;
  StartServing();
  v1::GenerateRequest request = Sampled("hoard", 400);
  request.mutable_sampling()->set_best_of(5);
  const Stream stream = Generate(request);
  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(stream.status.error_message(), HasSubstr("the limit of 10000 bytes"));
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 0 && Status().queued() == 0; }));
  request.mutable_sampling()->set_best_of(2);
  request.mutable_stop()->set_max_new_tokens(20);
  EXPECT_TRUE(Generate(request).status.ok()) << "what was held has been given back";
}

}  // namespace
}  // namespace pergola
