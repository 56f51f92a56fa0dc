// Clients that do not read what they asked for.
#include <gmock/gmock.h>

#include "tests/coordinator/coordinator_fixture.h"

namespace pergola {
namespace {

class SlowReaderTest : public CoordinatorTest {
 protected:
  static constexpr int64_t kTimeoutMs = 1000;

  SlowReaderTest() {
    server_options_.slow_reader_timeout_ms = kTimeoutMs;
    server_options_.max_calls = 1;
    engine_options_.prefill_rows = 1 << 20;
    StartCoordinator();
    v1::Hello hello = ByteHello();
    hello.set_context_length(1 << 20);
    hello.set_step_tokens(1 << 20);
    hello.set_block_tokens(128);
    hello.set_block_count(1 << 13);
    AttachGroup(hello);
    // The least that HTTP/2 lets a client take ahead of its reader.
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    small_ = v1::Generation::NewStub(grpc::CreateCustomChannel(
        server_->public_address(), grpc::InsecureChannelCredentials(), arguments));
  }

  // Its first message carries the ids of the prompt: far more than the buffers on the way hold.
  static v1::GenerateRequest Large(uint32_t max_new_tokens) {
    v1::GenerateRequest request = Prompt(std::string(500'000, 'x'), max_new_tokens);
    request.set_resumable(true);
    return request;
  }

  // How the call ended. gRPC's clients tell it only to who has read what came before.
  static grpc::Status EndOf(grpc::ClientReader<v1::GenerateResponse>* reader) {
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
    }
    return reader->Finish();
  }

  static void SetDeadline(grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
  }

  std::unique_ptr<v1::Generation::Stub> small_;
};

TEST_F(SlowReaderTest, AClientThatNeverReadsLosesItsCallItsPlaceAndItsBlocks) {
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = small_->Generate(&context, Large(100'000));
  ASSERT_TRUE(WaitFor([&] { return Status().groups(0).blocks_used() > 0; }));
  EXPECT_EQ(Generate(Prompt("x", 1)).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
      << "there is one place";
  EXPECT_TRUE(WaitFor([&] {
    const v1::StatusResponse status = Status();
    return status.running() == 0 && status.groups(0).blocks_used() == 0;
  }));
  EXPECT_TRUE(WaitFor([&] { return Generate(Prompt("x", 1)).status.ok(); })) << "the place is free";
  const grpc::Status status = EndOf(reader.get());
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_EQ(status.error_message(),
            "the client took nothing of the stream for 1000 ms, the limit of "
            "--slow-reader-timeout-ms");
}

TEST_F(SlowReaderTest, AClientThatNeverReadsTheEndLosesItsPlaceToo) {
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = small_->Generate(&context, Large(1));
  ASSERT_TRUE(WaitFor([&] { return Status().requests_total() == 1; }));
  EXPECT_TRUE(WaitFor([&] { return Generate(Prompt("x", 1)).status.ok(); }));
  EXPECT_EQ(EndOf(reader.get()).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(SlowReaderTest, AClientThatReadsLateButInTimeGetsAll) {
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto reader = small_->Generate(&context, Large(200));
  std::string text;
  v1::GenerateResponse message;
  // Longer in all than the bound, in steps that are not: only a single write may not last so long.
  // Small messages gather in the client, which then takes nothing new for several slow reads:
  // therefore two and no more.
  int slow_reads = 2;
  do {
    if (slow_reads-- > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(kTimeoutMs * 6 / 10));
    }
    text += message.text();
  } while (reader->Read(&message));
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(text.size(), 200U);
}

TEST_F(SlowReaderTest, APauseOfTheGroupIsNotTheClientsFault) {
  group_->SetPaused(true);
  Stream stream;
  std::thread client([&] { stream = Generate(Prompt("x", 5)); });
  EXPECT_TRUE(WaitFor([&] { return Status().running() == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(2 * kTimeoutMs));
  group_->SetPaused(false);
  client.join();
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text, Continuation(PromptIds("x"), 5));
}

}  // namespace
}  // namespace pergola
