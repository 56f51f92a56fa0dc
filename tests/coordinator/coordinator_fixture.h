// A whole coordinator in the test's process, on free ports, serving the byte model.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/server.h"
#include "pergola/v1/admin.grpc.pb.h"
#include "pergola/v1/generation.grpc.pb.h"
#include "tests/coordinator/fake_group.h"
#include "tests/coordinator/served_model.h"

namespace pergola {

inline constexpr char kToken[] = "secret";

class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest() {
    server_options_.listen = "127.0.0.1:0";
    server_options_.join_token = kToken;
    engine_options_.text_hash = parts_.hash;
    engine_options_.start_time_us = 1;
  }

  ~CoordinatorTest() override { StopCoordinator(); }

  void StartCoordinator() {
    engine_ = std::make_unique<Engine>(engine_options_);
    auto server = CoordinatorServer::Start(server_options_, {&parts_, &tokenizer_}, engine_.get(),
                                           [this] { drained_ = true; });
    ASSERT_TRUE(server.ok()) << server.status().ToString();
    server_ = *std::move(server);
    public_channel_ =
        grpc::CreateChannel(server_->public_address(), grpc::InsecureChannelCredentials());
    generation_ = v1::Generation::NewStub(public_channel_);
    admin_ = v1::Admin::NewStub(
        grpc::CreateChannel(server_->internal_address(), grpc::InsecureChannelCredentials()));
  }

  void StopCoordinator() {
    if (group_) group_->Stop();
    if (server_) server_->Shutdown(std::chrono::milliseconds(0));
    if (engine_) engine_->Stop();
    server_.reset();
    engine_.reset();
  }

  // Attaches a group and waits until it serves.
  void AttachGroup(const v1::Hello& hello = ByteHello()) {
    group_ = std::make_unique<FakeGroup>(server_->internal_address(), kToken, hello);
    ASSERT_TRUE(WaitFor([&] { return Status().serving(); }));
  }

  void StartServing() {
    StartCoordinator();
    AttachGroup();
  }

  // Polls; false if the condition did not come true within 10 s.
  static bool WaitFor(const std::function<bool()>& condition) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  v1::StatusResponse Status() {
    grpc::ClientContext context;
    AddToken(&context, kToken);
    v1::StatusResponse response;
    const grpc::Status status = admin_->Status(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  struct Stream {
    grpc::Status status;
    std::vector<v1::GenerateResponse> messages;
    std::string text;
    std::vector<int32_t> ids;
  };

  Stream Generate(const v1::GenerateRequest& request, grpc::ClientContext* context) {
    Stream stream;
    const auto reader = generation_->Generate(context, request);
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      stream.text += message.text();
      stream.ids.insert(stream.ids.end(), message.ids().begin(), message.ids().end());
      stream.messages.push_back(message);
    }
    stream.status = reader->Finish();
    return stream;
  }

  Stream Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, &context);
  }

  static v1::GenerateRequest Prompt(const std::string& text, uint32_t max_new_tokens) {
    v1::GenerateRequest request;
    request.set_text(text);
    request.mutable_stop()->set_max_new_tokens(max_new_tokens);
    return request;
  }

  static std::vector<int32_t> PromptIds(const std::string& text) {
    return *ByteTokenizer().Encode(text, true);
  }

  // The google.rpc.Status that came as grpc-status-details-bin.
  static google::rpc::Status Details(const grpc::Status& status) {
    google::rpc::Status details;
    EXPECT_TRUE(details.ParseFromString(status.error_details()));
    return details;
  }

  TextParts parts_ = ByteModelParts();
  ByteTokenizer tokenizer_;
  ServerOptions server_options_;
  EngineOptions engine_options_;
  std::atomic<bool> drained_{false};
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<CoordinatorServer> server_;
  std::shared_ptr<grpc::Channel> public_channel_;
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::Admin::Stub> admin_;
  std::unique_ptr<FakeGroup> group_;
};

}  // namespace pergola
