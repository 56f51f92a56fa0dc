#include "coordinator/link/worker_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

class WorkerServiceTest : public CoordinatorTest {
 protected:
  WorkerServiceTest() { StartCoordinator(); }

  std::unique_ptr<v1::Worker::Stub> Stub() {
    return v1::Worker::NewStub(
        grpc::CreateChannel(server_->internal_address(), grpc::InsecureChannelCredentials()));
  }

  // Sends the messages on one Attach stream and returns how the coordinator ended it.
  grpc::Status Attach(const std::vector<v1::WorkerMessage>& messages) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    AddToken(&context, kToken);
    const auto stub = Stub();
    const auto stream = stub->Attach(&context);
    for (const v1::WorkerMessage& message : messages) stream->Write(message);
    v1::CoordinatorMessage in;
    while (stream->Read(&in)) {
    }
    return stream->Finish();
  }

  grpc::Status Results(const std::vector<v1::ResultMessage>& messages) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    AddToken(&context, kToken);
    v1::ResultsAck ack;
    const auto stub = Stub();
    const auto stream = stub->Results(&context, &ack);
    for (const v1::ResultMessage& message : messages) stream->Write(message);
    return stream->Finish();
  }
};

v1::WorkerMessage HelloMessage() {
  v1::WorkerMessage message;
  *message.mutable_hello() = ByteHello();
  return message;
}

v1::ResultMessage Named(const std::string& group) {
  v1::ResultMessage message;
  message.mutable_hello()->set_group(group);
  return message;
}

TEST_F(WorkerServiceTest, AWrongJoinTokenIsUnauthenticatedEverywhere) {
  for (const char* token : {"", "wrong!", "secre", "secret1"}) {
    EXPECT_EQ(FakeGroup(server_->internal_address(), token).WaitForEnd().error_code(),
              grpc::StatusCode::UNAUTHENTICATED);
    grpc::ClientContext results, fault, status, drain;
    for (auto* context : {&results, &fault, &status, &drain}) AddToken(context, token);
    v1::ResultsAck ack;
    const auto stub = Stub();
    EXPECT_EQ(stub->Results(&results, &ack)->Finish().error_message(), "wrong join token");
    v1::FaultAck fault_ack;
    EXPECT_EQ(stub->ReportFault(&fault, {}, &fault_ack).error_message(), "wrong join token");
    v1::StatusResponse picture;
    EXPECT_EQ(admin_->Status(&status, {}, &picture).error_message(), "wrong join token");
    v1::DrainResponse drained;
    EXPECT_EQ(admin_->Drain(&drain, {}, &drained).error_message(), "wrong join token");
  }
  EXPECT_FALSE(drained_);
  EXPECT_EQ(Status().groups_size(), 0);
}

TEST_F(WorkerServiceTest, ASecondHelloEndsTheGroup) {
  const grpc::Status status = Attach({HelloMessage(), HelloMessage()});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "a second Hello on one Attach stream");
  EXPECT_TRUE(WaitFor([&] { return Status().groups(0).state() == v1::GROUP_STATE_LOST; }));
}

TEST_F(WorkerServiceTest, ProgressAfterHelloIsAnError) {
  v1::WorkerMessage progress;
  progress.mutable_progress()->set_phase("late");
  EXPECT_EQ(Attach({HelloMessage(), progress}).error_message(), "a message after Hello");
}

TEST_F(WorkerServiceTest, OneAttachStreamSpeaksOfOneGroup) {
  v1::WorkerMessage first, second;
  first.mutable_progress()->set_group("a");
  second.mutable_progress()->set_group("b");
  EXPECT_EQ(Attach({first, second}).error_message(),
            "group \"b\" on the Attach stream of group \"a\"");
  EXPECT_EQ(Attach({first, HelloMessage()}).error_message(),
            "group \"g0\" on the Attach stream of group \"a\"");
  const v1::StatusResponse status = Status();
  for (const v1::GroupStatus& group : status.groups()) EXPECT_EQ(group.name(), "a");
}

TEST_F(WorkerServiceTest, AnEmptyMessageIsAnError) {
  EXPECT_EQ(Attach({v1::WorkerMessage()}).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Results({Named("g0"), v1::ResultMessage()}).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(WorkerServiceTest, AMismatchIsRefusedInWords) {
  v1::Hello hello = ByteHello();
  hello.set_text_hash("other");
  const grpc::Status status = FakeGroup(server_->internal_address(), kToken, hello).WaitForEnd();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("text_hash other"));
}

TEST_F(WorkerServiceTest, ResultsMustNameTheirGroupOnceAndFirst) {
  v1::ResultMessage result;
  result.mutable_result()->set_plan_id(1);
  EXPECT_EQ(Results({result}).error_message(), "a result before ResultsHello");
  EXPECT_EQ(Results({Named("")}).error_message(), "a group name has 1 to 64 bytes, not 0");
  EXPECT_EQ(Results({Named("g"), Named("g")}).error_message(),
            "a second ResultsHello on one stream");
}

TEST_F(WorkerServiceTest, ANewerResultsStreamEndsTheOlder) {
  grpc::ClientContext context;
  AddToken(&context, kToken);
  v1::ResultsAck ack;
  const auto stub = Stub();
  const auto older = stub->Results(&context, &ack);
  ASSERT_TRUE(older->Write(Named("g0")));
  ASSERT_TRUE(WaitFor([&] { return Status().groups_size() == 1; }));
  AttachGroup();
  EXPECT_EQ(older->Finish().error_code(), grpc::StatusCode::ABORTED);
  EXPECT_TRUE(Generate(Prompt("x", 3)).status.ok()) << "the newer one delivers";
}

TEST_F(WorkerServiceTest, ANewerAttachOfTheSameNameEndsTheOlder) {
  AttachGroup();
  FakeGroup newer(server_->internal_address(), kToken);
  const grpc::Status status = group_->WaitForEnd();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_TRUE(Generate(Prompt("x", 3)).status.ok());
}

TEST_F(WorkerServiceTest, AStreamSurvivesTheLossOfItsGroup) {
  AttachGroup();
  group_->SetPaused(true);
  Stream stream;
  std::thread client([&] { stream = Generate(Prompt("hello", 100)); });
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 1; }));
  group_->Stop();
  AttachGroup();
  client.join();
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text, Continuation(PromptIds("hello"), 100));
}

TEST_F(WorkerServiceTest, AFaultIsShownWithoutBrokenText) {
  AttachGroup();
  v1::Fault fault;
  fault.set_group("g0");
  fault.set_epoch(Status().groups(0).epoch());
  std::string text(4095, 'x');
  fault.set_text(text + "\xc3\xa9 and more");
  grpc::ClientContext context;
  AddToken(&context, kToken);
  v1::FaultAck ack;
  EXPECT_TRUE(Stub()->ReportFault(&context, fault, &ack).ok());
  EXPECT_TRUE(WaitFor([&] { return !Status().groups(0).last_fault().empty(); }));
}

}  // namespace
}  // namespace pergola
