// `pergola chat` against a fake server in this process: what it asks for, prints and forgets.
// Ctrl-C is a matter of real processes: tests/e2e/run.sh chat.
#include <sys/eventfd.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "base/limits.h"
#include "client/commands.h"
#include "client/resumable_stream.h"
#include "client/text_input.h"
#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Answers "answer 1", "answer 2", ... in two pieces; what contains "break" breaks in between, what
// contains "refuse" is refused.
class FakeChatServer final : public v1::Generation::Service {
 public:
  FakeChatServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeChatServer() override { server_->Shutdown(); }
  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::Status Chat(grpc::ServerContext*, const v1::ChatRequest* request,
                    grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    chats_.push_back(*request);
    const std::string& last = request->messages(request->messages_size() - 1).content();
    if (last.find("refuse") != std::string::npos) {
      return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "no template");
    }
    v1::GenerateResponse message = Piece("answer ", 1);
    message.mutable_info()->mutable_prompt()->add_ids(7);
    writer->Write(message);
    if (last.find("break") != std::string::npos) {
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "going away");
    }
    WriteEnd(writer);
    return grpc::Status::OK;
  }

  grpc::Status Generate(grpc::ServerContext*, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    resumes_.push_back(*request);
    WriteEnd(writer);
    return grpc::Status::OK;
  }

  std::vector<v1::ChatRequest> chats_;  // read when no call runs
  std::vector<v1::GenerateRequest> resumes_;

 private:
  static v1::GenerateResponse Piece(const std::string& text, int id) {
    v1::GenerateResponse message;
    message.set_text(text);
    message.add_ids(id);
    return message;
  }
  void WriteEnd(grpc::ServerWriter<v1::GenerateResponse>* writer) {
    v1::GenerateResponse message = Piece(std::to_string(chats_.size()), 2);
    message.mutable_finish()->set_reason(v1::FINISH_REASON_EOS);
    writer->Write(message);
  }

  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

// "role: content" of each message.
std::vector<std::string> Said(const v1::ChatRequest& chat) {
  std::vector<std::string> lines;
  for (const v1::ChatMessage& message : chat.messages()) {
    lines.push_back(message.role() + ": " + message.content());
  }
  return lines;
}

class ChatCommandTest : public ::testing::Test {
 protected:
  // Runs `pergola chat` with these lines as standard input.
  int Run(std::vector<std::string> arguments, const std::string& input = "") {
    arguments.insert(arguments.begin(), {"pergola", "chat", "--connect", server_.address()});
    std::vector<const char*> argv;
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    int pipe_fds[2];
    EXPECT_EQ(pipe(pipe_fds), 0);
    EXPECT_EQ(write(pipe_fds[1], input.data(), input.size()), static_cast<ssize_t>(input.size()));
    close(pipe_fds[1]);
    const int stdin_before = dup(STDIN_FILENO);
    dup2(pipe_fds[0], STDIN_FILENO);
    close(pipe_fds[0]);
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const int code = RunCommandLine(Context(), "1", static_cast<int>(argv.size()), argv.data());
    errors_ = ::testing::internal::GetCapturedStderr();
    output_ = ::testing::internal::GetCapturedStdout();
    dup2(stdin_before, STDIN_FILENO);
    close(stdin_before);
    return code;
  }

  FakeChatServer server_;
  std::string output_;
  std::string errors_;
};

TEST_F(ChatCommandTest, OneMessageIsOneAnswer) {
  EXPECT_EQ(Run({"--system", "be brief", "--message", "hi", "--temperature", "0.5",
                 "--template-variables", "{\"a\": 1}"}),
            0);
  EXPECT_EQ(output_, "answer 1\n");
  EXPECT_THAT(errors_, IsEmpty());
  ASSERT_EQ(server_.chats_.size(), 1U);
  const v1::ChatRequest& chat = server_.chats_[0];
  EXPECT_THAT(Said(chat), ElementsAre("system: be brief", "user: hi"));
  EXPECT_EQ(chat.variables_json(), "{\"a\": 1}");
  EXPECT_EQ(chat.generate().sampling().temperature(), 0.5F);
  EXPECT_EQ(chat.generate().prompt_case(), v1::GenerateRequest::PROMPT_NOT_SET);
  EXPECT_TRUE(chat.generate().resumable());
}

TEST_F(ChatCommandTest, AConversationRemembersUntilItIsReset) {
  EXPECT_EQ(Run({"--system", "s"}, "one\n\ntwo\n/reset\nthree\n/quit\nnever\n"), 0);
  EXPECT_EQ(output_, "answer 1\nanswer 2\nanswer 3\n");
  ASSERT_EQ(server_.chats_.size(), 3U);
  EXPECT_THAT(Said(server_.chats_[1]),
              ElementsAre("system: s", "user: one", "assistant: answer 1", "user: two"));
  EXPECT_THAT(Said(server_.chats_[2]), ElementsAre("system: s", "user: three"));
}

TEST_F(ChatCommandTest, TheEndOfInputEndsTheConversationAfterItsLastLine) {
  EXPECT_EQ(Run({}, "one\ntwo"), 0);
  EXPECT_EQ(output_, "answer 1\nanswer 2\n");
  EXPECT_EQ(Run({}, ""), 0);
  EXPECT_THAT(output_, IsEmpty());
}

TEST_F(ChatCommandTest, WhatIsRefusedIsToldAndForgotten) {
  EXPECT_EQ(Run({}, "refuse this\ngo on\n"), 1);
  EXPECT_THAT(errors_, HasSubstr("FAILED_PRECONDITION: no template"));
  EXPECT_EQ(output_, "answer 2\n");
  EXPECT_THAT(Said(server_.chats_[1]), ElementsAre("user: go on"));
}

TEST_F(ChatCommandTest, ABrokenAnswerContinuesByGenerate) {
  EXPECT_EQ(Run({"--message", "break off"}), 0);
  EXPECT_EQ(output_, "answer 1\n");
  EXPECT_THAT(errors_, HasSubstr("resuming"));
  EXPECT_EQ(server_.chats_.size(), 1U);
  ASSERT_EQ(server_.resumes_.size(), 1U);
  EXPECT_THAT(server_.resumes_[0].resume().prompt().ids(), ElementsAre(7));
  EXPECT_EQ(server_.resumes_[0].resume().text_bytes(), 7U);
}

TEST_F(ChatCommandTest, UnknownCommandsAreNotSaid) {
  EXPECT_EQ(Run({}, "/bye\n"), 0);
  EXPECT_THAT(errors_, HasSubstr("no command /bye; /reset forgets"));
  EXPECT_THAT(server_.chats_, IsEmpty());
}

TEST_F(ChatCommandTest, WrongTextsAreRefusedBeforeAnythingIsAsked) {
  EXPECT_EQ(Run({"--message", "a\xFF"}), 2);
  EXPECT_THAT(errors_, HasSubstr("the message is not valid UTF-8 at byte 1"));
  EXPECT_EQ(Run({"--system", "\xFF", "--message", "hi"}), 2);
  EXPECT_THAT(errors_, HasSubstr("--system is not valid UTF-8 at byte 0"));
  EXPECT_EQ(Run({}, "\xFF\n"), 2);
  EXPECT_THAT(errors_, HasSubstr("the message is not valid UTF-8 at byte 0"));
  EXPECT_EQ(Run({"--message", "hi", "--top-p", "2"}), 2);
  EXPECT_THAT(server_.chats_, IsEmpty());
}

TEST_F(ChatCommandTest, HelpShowsAnExample) {
  EXPECT_EQ(Run({"--help"}), 0);
  EXPECT_THAT(output_, HasSubstr("Example: pergola chat"));
  EXPECT_THAT(output_, HasSubstr("/reset"));
}

TEST(LineReaderTest, AnInterruptEndsTheWait) {
  int pipe_fds[2];
  ASSERT_EQ(pipe(pipe_fds), 0);
  const int interrupts = eventfd(0, 0);
  LineReader lines(pipe_fds[0], interrupts);
  std::string line;
  ASSERT_EQ(write(pipe_fds[1], "a\nb", 3), 3);
  EXPECT_EQ(lines.Next(&line), LineReader::Event::kLine);
  EXPECT_EQ(line, "a");
  eventfd_write(interrupts, 1);
  EXPECT_EQ(lines.Next(&line), LineReader::Event::kInterrupt);
  eventfd_t count = 0;
  eventfd_read(interrupts, &count);
  close(pipe_fds[1]);
  EXPECT_EQ(lines.Next(&line), LineReader::Event::kLine) << "the last line lacks its end";
  EXPECT_EQ(line, "b");
  EXPECT_EQ(lines.Next(&line), LineReader::Event::kEnd);
  close(pipe_fds[0]);
  close(interrupts);
}

TEST(StreamCancellerTest, EndsAWaitAndTheCallsThatFollow) {
  StreamCanceller canceller;
  EXPECT_TRUE(canceller.Sleep(std::chrono::milliseconds(1)));
  canceller.Cancel();
  EXPECT_TRUE(canceller.cancelled());
  EXPECT_FALSE(canceller.Sleep(std::chrono::hours(1)));
}

}  // namespace
}  // namespace pergola
