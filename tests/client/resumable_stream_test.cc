// A fake server in this process that breaks streams as told.
#include "client/resumable_stream.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "base/limits.h"
#include "client/channel.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kTokens = 6;

std::string TextOf(int id) {
  return "t" + std::to_string(id) + "\xC3\xA9 ";
}

std::string WholeText() {
  std::string text;
  for (int id = 0; id < kTokens; ++id) text += TextOf(id);
  return text;
}

// Streams ids 0 to kTokens - 1 and continues where a resume says; call k breaks after
// break_after[k] messages.
class FakeServer final : public v1::Generation::Service {
 public:
  explicit FakeServer(std::vector<int> break_after) : break_after_(std::move(break_after)) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { server_->Shutdown(); }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    const size_t call = requests_.size();
    requests_.push_back(*request);
    for (const auto& [key, value] : context->client_metadata()) {
      if (key == kTenantKey) tenants_.emplace_back(value.data(), value.size());
    }
    const int limit = call < break_after_.size() ? break_after_[call] : kTokens + 1;
    if (limit == 0) return broken_;
    int next = request->resume().received().ids_size();
    for (int sent = 0; sent < limit && next < kTokens; ++sent, ++next) {
      v1::GenerateResponse message;
      message.add_ids(next);
      message.set_text(TextOf(next));
      if (sent == 0) {
        message.mutable_info()->set_seed(42);
        message.mutable_info()->set_numerics_id("numerics");
        message.mutable_info()->mutable_prompt()->add_ids(7);
      }
      if (next == kTokens - 1) message.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
      writer->Write(message);
    }
    return next == kTokens ? grpc::Status::OK : broken_;
  }

  std::shared_ptr<grpc::Channel> Connect() { return Dial("127.0.0.1:" + std::to_string(port_)); }

  grpc::Status broken_{grpc::StatusCode::UNAVAILABLE, "going away"};
  std::vector<v1::GenerateRequest> requests_;  // read when no call runs
  std::vector<std::string> tenants_;           // of the calls that named one

 private:
  const std::vector<int> break_after_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

struct Outcome {
  grpc::Status status;
  std::string text;
  std::vector<int> ids;
  int interruptions = 0;
};

Outcome RunStream(const std::shared_ptr<grpc::Channel>& channel,
                  milliseconds resume_timeout = milliseconds(20000)) {
  Outcome outcome;
  ResumeOptions options;
  options.resume_timeout = resume_timeout;
  options.first_delay = milliseconds(1);
  options.connect_timeout = milliseconds(2000);
  options.on_message = [&](const v1::GenerateResponse& message) {
    outcome.text += message.text();
    outcome.ids.insert(outcome.ids.end(), message.ids().begin(), message.ids().end());
  };
  options.on_interruption = [&](const grpc::Status&) { ++outcome.interruptions; };
  v1::GenerateRequest request;
  request.set_text("prompt");
  request.mutable_sampling()->set_temperature(0.5F);
  outcome.status = RunResumableStream(channel, request, options);
  return outcome;
}

TEST(ResumableStreamTest, AnUndisturbedStreamIsOneCall) {
  FakeServer server({});
  const Outcome outcome = RunStream(server.Connect());
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.text, WholeText());
  EXPECT_EQ(outcome.interruptions, 0);
  ASSERT_EQ(server.requests_.size(), 1U);
  EXPECT_TRUE(server.requests_[0].resumable());
  EXPECT_FALSE(server.requests_[0].has_resume());
}

TEST(ResumableStreamTest, ABrokenStreamContinuesWithoutAGapOrARepeat) {
  FakeServer server({2, 1});
  const Outcome outcome = RunStream(server.Connect());
  EXPECT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.text, WholeText());
  EXPECT_THAT(outcome.ids, ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(outcome.interruptions, 2);
  ASSERT_EQ(server.requests_.size(), 3U);
  const v1::GenerateRequest& last = server.requests_[2];
  EXPECT_EQ(last.prompt_case(), v1::GenerateRequest::PROMPT_NOT_SET);
  EXPECT_THAT(last.resume().prompt().ids(), ElementsAre(7));
  EXPECT_THAT(last.resume().received().ids(), ElementsAre(0, 1, 2));
  EXPECT_EQ(last.resume().text_bytes(), 3 * TextOf(0).size());
  EXPECT_EQ(last.resume().seed(), 42U);
  EXPECT_EQ(last.resume().numerics_id(), "numerics");
  EXPECT_EQ(last.sampling().temperature(), 0.5F);
}

TEST(ResumableStreamTest, RetriesAResumeThatIsRefusedForNow) {
  FakeServer server({3, 0, 0, 0});
  const Outcome outcome = RunStream(server.Connect());
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.text, WholeText());
  EXPECT_EQ(outcome.interruptions, 1);
}

TEST(ResumableStreamTest, BeforeTheFirstMessageASilentBreakIsRetriedWithTheWholeRequest) {
  FakeServer server({0});
  EXPECT_TRUE(RunStream(server.Connect()).status.ok());
  ASSERT_EQ(server.requests_.size(), 2U);
  EXPECT_EQ(server.requests_[1].text(), "prompt");
}

TEST(ResumableStreamTest, BeforeTheFirstMessageARefusalWithDetailsIsFinal) {
  FakeServer server({0});
  google::rpc::Status details;
  details.add_details()->PackFrom(google::rpc::ErrorInfo());
  server.broken_ =
      grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining", details.SerializeAsString());
  const Outcome outcome = RunStream(server.Connect());
  EXPECT_EQ(outcome.status.error_message(), "draining");
  EXPECT_EQ(server.requests_.size(), 1U);
}

TEST(ResumableStreamTest, OtherErrorsAreNotRetried) {
  FakeServer server({2});
  server.broken_ = grpc::Status(grpc::StatusCode::INTERNAL, "suspect");
  const Outcome outcome = RunStream(server.Connect());
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(server.requests_.size(), 1U);
}

TEST(ResumableStreamTest, AnOkStatusWithoutALastMessageIsAnInterruption) {
  FakeServer server({2});
  server.broken_ = grpc::Status::OK;
  const Outcome outcome = RunStream(server.Connect());
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.text, WholeText());
}

TEST(ResumableStreamTest, GivesUpWhenOneInterruptionLastsTooLong) {
  FakeServer server(std::vector<int>(1000, 0));
  const Outcome outcome = RunStream(server.Connect(), milliseconds(50));
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  // Delays of 1, 2, 4, 8 and 16 ms fit into 50 ms, one of 32 ms more does not.
  EXPECT_LE(server.requests_.size(), 7U);
}

// A message of one sequence with `ids`, and with it the prompt's ids 7 and 8 when it is the first.
v1::GenerateResponse MessageOf(uint32_t index, const std::vector<int32_t>& ids, bool first = false,
                               bool last = false) {
  v1::GenerateResponse message;
  message.set_index(index);
  message.mutable_ids()->Add(ids.begin(), ids.end());
  for (const int32_t id : ids) message.mutable_text()->append(std::to_string(id));
  if (first) {
    message.mutable_info()->set_seed(42);
    message.mutable_info()->set_numerics_id("numerics");
    message.mutable_info()->set_prompt_token_count(2);
    message.mutable_info()->mutable_prompt()->add_ids(7);
    message.mutable_info()->mutable_prompt()->add_ids(8);
  }
  if (last) message.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
  return message;
}

v1::GenerateRequest RequestOf(uint32_t n, uint32_t best_of) {
  v1::GenerateRequest request;
  request.set_text("prompt");
  request.set_echo(true);
  request.mutable_sampling()->set_n(n);
  request.mutable_sampling()->set_best_of(best_of);
  return request;
}

TEST(StreamProgressTest, EveryIndexIsContinuedFromWhatItHas) {
  StreamProgress progress(RequestOf(3, 3));
  EXPECT_TRUE(progress.NextRequest().resumable());
  // The first message may be of any index.
  ASSERT_TRUE(progress.Take(MessageOf(2, {11}, /*first=*/true)).ok());
  ASSERT_TRUE(progress.Take(MessageOf(0, {22, 3})).ok());
  ASSERT_TRUE(progress.Take(MessageOf(2, {4}, false, /*last=*/true)).ok());
  EXPECT_EQ(progress.received(), 4U);
  EXPECT_FALSE(progress.finished());
  EXPECT_EQ(progress.WhyNotResumable(), "");
  const v1::GenerateRequest next = progress.NextRequest();
  EXPECT_EQ(next.prompt_case(), v1::GenerateRequest::PROMPT_NOT_SET);
  EXPECT_TRUE(next.echo());
  EXPECT_EQ(next.sampling().n(), 3U);
  const v1::Resume& resume = next.resume();
  EXPECT_THAT(resume.prompt().ids(), ElementsAre(7, 8));
  EXPECT_EQ(resume.seed(), 42U);
  EXPECT_THAT(resume.received().ids(), ElementsAre(22, 3));
  EXPECT_EQ(resume.text_bytes(), 3U);
  EXPECT_FALSE(resume.finished());
  ASSERT_EQ(resume.others_size(), 2);
  EXPECT_EQ(resume.others(0).ids().ids_size(), 0);
  EXPECT_FALSE(resume.others(0).finished());
  EXPECT_THAT(resume.others(1).ids().ids(), ElementsAre(11, 4));
  EXPECT_EQ(resume.others(1).text_bytes(), 3U);
  EXPECT_TRUE(resume.others(1).finished());
}

TEST(StreamProgressTest, AFinishedFirstSequenceIsSaidToBe) {
  StreamProgress progress(RequestOf(2, 2));
  ASSERT_TRUE(progress.Take(MessageOf(0, {1}, true, true)).ok());
  EXPECT_FALSE(progress.finished());
  EXPECT_TRUE(progress.NextRequest().resume().finished());
  ASSERT_TRUE(progress.Take(MessageOf(1, {1}, false, true)).ok());
  EXPECT_TRUE(progress.finished());
}

TEST(StreamProgressTest, AnIndexThatWasNotAskedForIsAnError) {
  StreamProgress progress(RequestOf(2, 2));
  const absl::Status status = progress.Take(MessageOf(4294967295U, {1}, true));
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("index 4294967295"));
  EXPECT_FALSE(progress.started());
  StreamProgress one((v1::GenerateRequest()));
  EXPECT_FALSE(one.Take(MessageOf(1, {1})).ok());
}

TEST(StreamProgressTest, TheBestOfMoreStartsAnewOnlyWhileNothingHasCome) {
  StreamProgress progress(RequestOf(2, 3));
  EXPECT_FALSE(progress.NextRequest().resumable());
  EXPECT_EQ(progress.WhyNotResumable(), "");
  EXPECT_EQ(progress.NextRequest().text(), "prompt");
  ASSERT_TRUE(progress.Take(MessageOf(0, {1}, true, true)).ok());
  EXPECT_THAT(progress.WhyNotResumable(), HasSubstr("best_of above n"));
}

TEST(StreamProgressTest, PromptLogprobsMustHaveComeWholeBeforeAStreamIsContinued) {
  v1::GenerateRequest request = RequestOf(1, 1);
  request.set_prompt_logprobs(0);
  StreamProgress progress(request);
  ASSERT_TRUE(progress.Take(MessageOf(0, {}, true)).ok());
  EXPECT_THAT(progress.WhyNotResumable(), HasSubstr("prompt's log-probabilities"));
  v1::GenerateResponse scores;
  scores.add_prompt_logprobs()->set_logprob(-1);
  ASSERT_TRUE(progress.Take(scores).ok());
  EXPECT_EQ(progress.WhyNotResumable(), "");
  // The server refuses them together with resume.
  EXPECT_FALSE(progress.NextRequest().has_prompt_logprobs());

  request.mutable_stop()->set_max_new_tokens(0);
  StreamProgress scoring(request);
  ASSERT_TRUE(scoring.Take(MessageOf(0, {}, true)).ok());
  ASSERT_TRUE(scoring.Take(scores).ok());
  EXPECT_THAT(scoring.WhyNotResumable(), HasSubstr("prompt's log-probabilities"))
      << "without new tokens nothing is left to resume";
}

TEST(ResumableStreamTest, WhatCannotBeContinuedEndsWithTheReason) {
  FakeServer server({2});
  ResumeOptions options;
  v1::GenerateRequest request = RequestOf(1, 2);
  const grpc::Status status = RunResumableStream(server.Connect(), request, options);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "going away; a request with best_of above n cannot be resumed");
  EXPECT_EQ(server.requests_.size(), 1U);
}

TEST(ResumableStreamTest, TheTenantGoesWithEveryCall) {
  FakeServer server({2});
  ResumeOptions options;
  options.first_delay = milliseconds(1);
  options.tenant = "team-a";
  v1::GenerateRequest request;
  request.set_text("prompt");
  EXPECT_TRUE(RunResumableStream(server.Connect(), request, options).ok());
  EXPECT_THAT(server.tenants_, ElementsAre("team-a", "team-a"));
}

TEST(ResumableStreamTest, SaysThatNothingAnswers) {
  ResumeOptions options;
  options.connect_timeout = milliseconds(200);
  // Port 9 of the loopback (discard) is privileged and unused here.
  const grpc::Status status =
      RunResumableStream(Dial("127.0.0.1:9"), v1::GenerateRequest(), options);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("nothing answers within 200 ms"));
}

}  // namespace
}  // namespace pergola
