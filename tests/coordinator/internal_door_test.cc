#include "coordinator/link/internal_door.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "grpcpp/impl/codegen/sync_stream.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

constexpr char kAttach[] = "/pergola.v1.Worker/Attach";
constexpr char kResults[] = "/pergola.v1.Worker/Results";
constexpr char kReportFault[] = "/pergola.v1.Worker/ReportFault";
constexpr char kStatus[] = "/pergola.v1.Admin/Status";
constexpr char kDrain[] = "/pergola.v1.Admin/Drain";

class InternalDoorTest : public CoordinatorTest {
 protected:
  InternalDoorTest() { StartCoordinator(); }

  // Any call with these bytes as its only message, the way a peer of another make would do it.
  grpc::Status Call(const char* path, const std::string& bytes,
                    const std::vector<std::string>& tokens = {kToken}) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
    for (const std::string& token : tokens) AddToken(&context, token);
    const auto channel =
        grpc::CreateChannel(server_->internal_address(), grpc::InsecureChannelCredentials());
    const grpc::internal::RpcMethod method(path, grpc::internal::RpcMethod::BIDI_STREAMING);
    const std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>> stream(
        grpc::internal::ClientReaderWriterFactory<grpc::ByteBuffer, grpc::ByteBuffer>::Create(
            channel.get(), method, &context));
    const grpc::Slice slice(bytes);
    stream->Write(grpc::ByteBuffer(&slice, 1));
    stream->WritesDone();
    grpc::ByteBuffer answer;
    while (stream->Read(&answer)) {
    }
    return stream->Finish();
  }

  grpc::Status Fault(const v1::Fault& fault) {
    return Call(kReportFault, fault.SerializeAsString());
  }
};

void ExpectInvalid(const grpc::Status& status, const std::string& says) {
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr(says));
}

TEST_F(InternalDoorTest, BytesThatAreNoMessageAreInvalidInEveryCall) {
  const std::string garbage = "\x0a\xff";  // a field longer than the message
  ExpectInvalid(Call(kAttach, garbage), "the 2 bytes are not a pergola.v1.WorkerMessage");
  ExpectInvalid(Call(kResults, garbage), "the 2 bytes are not a pergola.v1.ResultMessage");
  ExpectInvalid(Call(kReportFault, garbage), "the 2 bytes are not a pergola.v1.Fault");
  ExpectInvalid(Call(kStatus, garbage), "the 2 bytes are not a pergola.v1.StatusRequest");
  ExpectInvalid(Call(kDrain, garbage), "the 2 bytes are not a pergola.v1.DrainRequest");
  EXPECT_FALSE(Status().draining());
}

TEST_F(InternalDoorTest, TextThatIsNoUtf8IsNamed) {
  // Fault.text is field 8.
  ExpectInvalid(Call(kReportFault, "\x42\x02\xff\xfe"), "text: invalid UTF-8 at byte 0");
}

TEST_F(InternalDoorTest, AnUnknownMethodIsUnimplementedAndNamed) {
  const grpc::Status status = Call("/pergola.v1.Worker/Detach", "");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(status.error_message(), "no method '/pergola.v1.Worker/Detach'");
}

TEST_F(InternalDoorTest, TheTokenIsCheckedBeforeAnythingIsRead) {
  // More than gRPC accepts as one message: who reads it first says RESOURCE_EXHAUSTED.
  const std::string huge(size_t{kMaxMessageBytes} + 1, 'x');
  for (const char* path : {kAttach, kResults, kReportFault, kStatus, kDrain}) {
    const grpc::Status status = Call(path, huge, {"wrong!"});
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << path;
    EXPECT_EQ(status.error_message(), "wrong join token") << path;
  }
}

TEST_F(InternalDoorTest, TwoTokensInOneCallAreRefusedThoughOneIsRight) {
  for (const auto& tokens : std::vector<std::vector<std::string>>{
           {kToken, "other"}, {"other", kToken}, {kToken, kToken}}) {
    for (const char* path : {kAttach, kResults, kReportFault, kStatus, kDrain}) {
      const grpc::Status status = Call(path, "", tokens);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << path;
      EXPECT_EQ(status.error_message(), "the call carries 2 join tokens; it must be one");
    }
  }
  EXPECT_FALSE(Status().draining());
}

TEST_F(InternalDoorTest, AMessageBeyondTheLimitIsInvalid) {
  v1::Fault fault;
  fault.set_group("g0");
  fault.set_text(std::string(kMaxControlMessageBytes, 'x'));
  ExpectInvalid(Fault(fault), "bytes, more than the limit of 16777216");
  v1::WorkerMessage message;
  message.mutable_hello()->set_model(fault.text());
  ExpectInvalid(Call(kAttach, message.SerializeAsString()), "more than the limit of 16777216");
}

TEST_F(InternalDoorTest, AFaultIsCutToItsLimits) {
  AttachGroup();
  v1::Fault fault;
  fault.set_group("g0");
  fault.set_operation(std::string(10'000, 'o'));
  fault.set_text(std::string(1'000'000, 'x'));
  EXPECT_TRUE(Fault(fault).ok());
  EXPECT_TRUE(WaitFor([&] { return !Status().groups(0).last_fault().empty(); }));
  const std::string shown = Status().groups(0).last_fault();
  EXPECT_EQ(std::count(shown.begin(), shown.end(), 'o'), 256);
  EXPECT_EQ(std::count(shown.begin(), shown.end(), 'x'), 4096);
  fault.set_group("");
  ExpectInvalid(Fault(fault), "a group name has 1 to 64 bytes, not 0");
}

TEST_F(InternalDoorTest, TextsOfAHelloHaveLimits) {
  struct Case {
    const char* says;
    std::function<void(v1::Hello*)> damage;
  };
  const std::string name(257, 'n');
  const std::string hash(129, 'f');
  const Case cases[] = {
      {"a group name has 1 to 64 bytes, not 65",
       [](v1::Hello* hello) { hello->set_group(std::string(65, 'g')); }},
      {"group has a control character at byte 1: 'g\\x1b'",
       [](v1::Hello* hello) { hello->set_group("g\x1b"); }},
      {"hello.model has 257 bytes, more than the limit of 256",
       [&](v1::Hello* hello) { hello->set_model(name); }},
      {"hello.architecture has 257 bytes",
       [&](v1::Hello* hello) { hello->set_architecture(name); }},
      {"hello.fingerprint has 129 bytes, more than the limit of 128",
       [&](v1::Hello* hello) { hello->set_fingerprint(hash); }},
      {"hello.text_hash has 129 bytes", [&](v1::Hello* hello) { hello->set_text_hash(hash); }},
      {"hello.numerics_id has 129 bytes", [&](v1::Hello* hello) { hello->set_numerics_id(hash); }},
      {"hello.layout.stages[0].host has 257 bytes",
       [&](v1::Hello* hello) { hello->mutable_layout()->mutable_stages(0)->set_host(name); }},
      {"hello.layout.stages[0].host has a control character at byte 0",
       [](v1::Hello* hello) { hello->mutable_layout()->mutable_stages(0)->set_host("\n"); }},
      {"hello.layout.stages has 2 items, more than the layout's 1",
       [](v1::Hello* hello) { hello->mutable_layout()->add_stages(); }},
      {"hello.layout.stages[0].pids has 2 items, more than the layout's 1",
       [](v1::Hello* hello) {
         for (int pid : {1, 2}) hello->mutable_layout()->mutable_stages(0)->add_pids(pid);
       }},
  };
  for (const Case& damaged : cases) {
    v1::WorkerMessage message;
    *message.mutable_hello() = ByteHello();
    damaged.damage(message.mutable_hello());
    ExpectInvalid(Call(kAttach, message.SerializeAsString()), damaged.says);
  }
  EXPECT_EQ(Status().groups_size(), 0);
}

TEST_F(InternalDoorTest, TextsOfProgressHaveLimits) {
  v1::WorkerMessage message;
  message.mutable_progress()->set_phase("x");
  ExpectInvalid(Call(kAttach, message.SerializeAsString()), "1 to 64 bytes, not 0");
  message.mutable_progress()->set_group("g");
  message.mutable_progress()->set_phase(std::string(257, 'p'));
  ExpectInvalid(Call(kAttach, message.SerializeAsString()),
                "progress.phase has 257 bytes, more than the limit of 256");
}

}  // namespace
}  // namespace pergola
