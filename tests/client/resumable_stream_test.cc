// A fake server in this process that breaks streams as told.
#include "client/resumable_stream.h"

#include <atomic>
#include <memory>
#include <vector>

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

  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    const size_t call = requests_.size();
    requests_.push_back(*request);
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
