#include "coordinator/server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "google/protobuf/wrappers.pb.h"
#include "grpcpp/impl/codegen/client_unary_call.h"
#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

class ServerTest : public CoordinatorTest {
 protected:
  // grpc.health.v1.Health/Check without its stubs, which Debian does not ship. HealthCheckRequest
  // is {string service = 1}, the answer {enum status = 1}; both have the wire form of a
  // google.protobuf wrapper. 1: SERVING, 2: not; -1: an error, as for an unknown service.
  int Health(const std::string& address, const std::string& service) {
    google::protobuf::StringValue request;
    request.set_value(service);
    google::protobuf::UInt32Value response;
    grpc::ClientContext context;
    const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
    const grpc::internal::RpcMethod method("/grpc.health.v1.Health/Check",
                                           grpc::internal::RpcMethod::NORMAL_RPC);
    const grpc::Status status = grpc::internal::BlockingUnaryCall<
        google::protobuf::StringValue, google::protobuf::UInt32Value, google::protobuf::MessageLite,
        google::protobuf::MessageLite>(channel.get(), method, &context, request, &response);
    return status.ok() ? static_cast<int>(response.value()) : -1;
  }
  int Health(const std::string& service) { return Health(server_->public_address(), service); }

  absl::Status TryStart() {
    Engine engine(engine_options_);
    return CoordinatorServer::Start(server_options_, {&parts_, &tokenizer_}, &engine, [] {})
        .status();
  }
};

constexpr int kServing = 1;
constexpr int kNotServing = 2;

TEST_F(ServerTest, HealthFollowsTheGroup) {
  StartCoordinator();
  for (const char* service : {"", "pergola.v1.Generation"}) {
    EXPECT_EQ(Health(service), kNotServing) << "no group";
  }
  AttachGroup();
  for (const char* service : {"", "pergola.v1.Generation"}) {
    EXPECT_TRUE(WaitFor([&] { return Health(service) == kServing; }));
  }
  group_->Stop();
  EXPECT_TRUE(WaitFor([&] { return Health("") == kNotServing; }));
  EXPECT_EQ(Health("no.such.Service"), -1);
}

TEST_F(ServerTest, TheInternalListenerHasNoPublicServices) {
  StartCoordinator();
  EXPECT_EQ(Health(server_->internal_address(), ""), -1);
  const auto stub = v1::Generation::NewStub(
      grpc::CreateChannel(server_->internal_address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  EXPECT_EQ(stub->Tokenize(&context, {}, &response).error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(ServerTest, DrainTurnsHealthOffFirstAndLetsStreamsEnd) {
  StartServing();
  group_->SetPaused(true);
  Stream running;
  std::thread client([&] { running = Generate(Prompt("x", 50)); });
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 1; }));
  v1::DrainResponse drain;
  std::thread drainer([&] {
    grpc::ClientContext context;
    AddToken(&context, kToken);
    EXPECT_TRUE(admin_->Drain(&context, {}, &drain).ok());
  });
  EXPECT_TRUE(WaitFor([&] { return Status().draining(); }));
  EXPECT_TRUE(WaitFor([&] { return Health("") == kNotServing; }));
  EXPECT_EQ(Generate(Prompt("y", 1)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(drained_);
  group_->SetPaused(false);
  client.join();
  drainer.join();
  EXPECT_TRUE(running.status.ok());
  EXPECT_EQ(running.text, Continuation(PromptIds("x"), 50));
  EXPECT_EQ(drain.finished(), 1U);
  EXPECT_EQ(drain.cancelled(), 0U);
  EXPECT_TRUE(WaitFor([&] { return drained_.load(); }));
}

TEST_F(ServerTest, DrainEndsWhatDoesNotEnd) {
  StartServing();
  group_->SetPaused(true);
  Stream running;
  std::thread client([&] { running = Generate(Prompt("x", 50)); });
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 1; }));
  grpc::ClientContext context;
  AddToken(&context, kToken);
  v1::DrainRequest request;
  request.set_timeout_ms(20);
  v1::DrainResponse drain;
  EXPECT_TRUE(admin_->Drain(&context, request, &drain).ok());
  client.join();
  EXPECT_EQ(drain.cancelled(), 1U);
  EXPECT_EQ(running.status.error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(ServerTest, RefusesAnAbsurdDrainTimeout) {
  StartCoordinator();
  grpc::ClientContext context;
  AddToken(&context, kToken);
  v1::DrainRequest request;
  request.set_timeout_ms(86'400'001);
  v1::DrainResponse drain;
  EXPECT_EQ(admin_->Drain(&context, request, &drain).error_message(),
            "timeout_ms: 86400001 exceeds the limit of 86400000 ms");
  EXPECT_FALSE(Status().draining());
}

TEST_F(ServerTest, ShutdownEndsCallsInProgress) {
  StartServing();
  group_->SetPaused(true);
  Stream running;
  std::thread client([&] { running = Generate(Prompt("x", 50)); });
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 1; }));
  group_->SetPaused(false);
  server_->Shutdown(std::chrono::milliseconds(0));
  client.join();
  SUCCEED() << "it returned";
}

TEST_F(ServerTest, ShutdownEndsTheStreamsOfWorkersAtOnce) {
  StartServing();
  FakeGroup other(server_->internal_address(), kToken, [] {
    v1::Hello hello = ByteHello();
    hello.set_group("other");
    return hello;
  }());
  ASSERT_TRUE(WaitFor([&] { return Status().groups_size() == 2; }));
  const auto begin = std::chrono::steady_clock::now();
  server_->Shutdown(std::chrono::seconds(30));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(10));
  for (FakeGroup* group : {group_.get(), &other}) {
    const grpc::Status status = group->WaitForEnd();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(status.error_message(), "the coordinator ends");
  }
}

TEST_F(ServerTest, APortInUseIsAnErrorThatNamesIt) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string taken = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  const std::string expected = absl::StrCat("cannot listen on ", taken, ": Address already in use");
  server_options_.listen = taken;
  EXPECT_EQ(TryStart().message(), expected);
  server_options_.listen = "127.0.0.1:0";
  server_options_.internal_listen = taken;
  EXPECT_EQ(TryStart().message(), expected);
  close(fd);
}

TEST_F(ServerTest, TwoCoordinatorsDoNotShareAPort) {
  StartCoordinator();
  server_options_.listen = server_->public_address();
  EXPECT_TRUE(absl::IsUnavailable(TryStart()));
}

TEST_F(ServerTest, BeyondLoopbackItNeedsAToken) {
  server_options_.internal_listen = "0.0.0.0:0";
  server_options_.join_token.clear();
  EXPECT_THAT(std::string(TryStart().message()), HasSubstr("there is no join token"));
  server_options_.join_token = kToken;
  EXPECT_TRUE(TryStart().ok());
}

TEST_F(ServerTest, RefusesAddressesThatAreNone) {
  server_options_.listen = "8080";
  EXPECT_TRUE(absl::IsInvalidArgument(TryStart()));
  server_options_.listen = "127.0.0.1:0";
  server_options_.internal_listen = "no-such-host.invalid:1";
  EXPECT_THAT(std::string(TryStart().message()), HasSubstr("cannot resolve host"));
}

}  // namespace
}  // namespace pergola
