// `pergola bench` against a server in this process whose every stream is known beforehand.
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "client/commands.h"
#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Sends as many tokens as asked, two in a message, one millisecond between messages.
class FakeServer final : public v1::Generation::Service {
 public:
  FakeServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  grpc::Status ModelInfo(grpc::ServerContext*, const v1::ModelInfoRequest*,
                         v1::ModelInfoResponse* info) override {
    info->set_model("fake");
    info->set_vocabulary_size(vocabulary_);
    info->set_context_length(1024);
    return grpc::Status::OK;
  }

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    const int calls = ++calls_;
    const int running = ++running_;
    const grpc::Status status = running > most_at_once_ || calls > most_calls_
                                    ? grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full")
                                    : Stream(*context, *request, *writer);
    --running_;
    return status;
  }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // Set before the calls.
  uint32_t vocabulary_ = 100;
  int most_at_once_ = 1 << 20;
  int most_calls_ = 1 << 20;
  int pause_ms_ = 1;
  std::atomic<int> calls_{0};

 private:
  grpc::Status Stream(grpc::ServerContext& context, const v1::GenerateRequest& request,
                      grpc::ServerWriter<v1::GenerateResponse>& writer) const {
    uint32_t left = request.stop().max_new_tokens();
    while (left > 0 && !context.IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms_));
      v1::GenerateResponse message;
      for (int i = 0; i < 2 && left > 0; ++i, --left) message.add_ids(i);
      message.set_text("text");
      if (left == 0) message.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
      writer.Write(message);
    }
    return grpc::Status::OK;
  }

  int port_ = 0;
  std::atomic<int> running_{0};
  std::unique_ptr<grpc::Server> server_;
};

class BenchCommandTest : public ::testing::Test {
 protected:
  BenchCommandTest() {
    std::string pattern = ::testing::TempDir() + "pergola-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~BenchCommandTest() override { std::filesystem::remove_all(folder_); }

  // Runs it with --json and reads that.
  int Bench(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "bench");
    if (connect_.empty()) connect_ = server_.address();
    for (const std::string& more :
         {std::string("--connect"), connect_, std::string("--json"), folder_ + "/out.json"}) {
      arguments.push_back(more);
    }
    const int code = Run(arguments);
    std::ifstream file(folder_ + "/out.json");
    json_ = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
    return code;
  }

  int Run(const std::vector<std::string>& arguments) {
    Context context;
    context.runtime_dir = folder_;
    std::vector<const char*> argv = {"pergola"};
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const int code = RunCommandLine(context, "1.2", static_cast<int>(argv.size()), argv.data());
    errors_ = ::testing::internal::GetCapturedStderr();
    output_ = ::testing::internal::GetCapturedStdout();
    return code;
  }

  std::string Read(const std::string& name) const {
    std::ifstream file(folder_ + "/" + name);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  FakeServer server_;
  std::string folder_;
  std::string connect_;
  std::string errors_;
  std::string output_;
  nlohmann::json json_;
};

TEST_F(BenchCommandTest, AClosedLoopCountsEveryTokenAndMessage) {
  EXPECT_EQ(
      Bench({"--streams", "4", "--requests", "10", "--prompt-tokens", "3", "--output-tokens", "7"}),
      0)
      << errors_;
  EXPECT_EQ(json_["model"], "fake");
  EXPECT_EQ(json_["streams"], 4);
  EXPECT_EQ(json_["completed"], 10);
  EXPECT_EQ(json_["tokens"], 70);
  EXPECT_EQ(json_["messages"], 40);
  EXPECT_EQ(server_.calls_, 11) << "and one to warm up";
  EXPECT_GE(json_["ttft_p50_ms"], 1.0) << "the server's pause";
  EXPECT_GE(json_["request_p50_ms"], 4.0);
  EXPECT_THAT(output_, HasSubstr("fake at " + server_.address() + ": 4 streams, 10 requests"));
}

TEST_F(BenchCommandTest, AnOpenLoopDropsAndTellsWhatIsBeyondItsBound) {
  server_.pause_ms_ = 20;
  EXPECT_EQ(Bench({"--rate", "2000", "--burst", "10", "--requests", "100", "--max-in-flight", "5",
                   "--output-tokens", "8", "--slo-ttft-ms", "100000"}),
            0)
      << errors_;
  EXPECT_EQ(json_["requests"], 100);
  EXPECT_GT(json_["dropped"], 0);
  EXPECT_EQ(json_["dropped"].get<int>() + json_["sent"].get<int>(), 100);
  EXPECT_EQ(json_["completed"], json_["sent"]);
  EXPECT_DOUBLE_EQ(json_["goodput_share"], json_["completed"].get<double>() / 100)
      << "what was dropped was not good";
  EXPECT_THAT(output_, HasSubstr("arrivals dropped: 5 requests were in flight"));
}

TEST_F(BenchCommandTest, LatencyCountsFromTheScheduledArrival) {
  // A request sent late has waited already: its lateness is part of its latency.
  EXPECT_EQ(Bench({"--rate", "50", "--requests", "6", "--output-tokens", "2"}), 0) << errors_;
  EXPECT_GE(json_["ttft_p999_ms"], json_["max_late_ms"]);
}

TEST_F(BenchCommandTest, UsersThinkBetweenTheirRequests) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(Bench({"--users", "3", "--think-s", "0.1:0.2", "--requests", "6", "--mix"}), 0)
      << errors_;
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100));
  EXPECT_EQ(json_["tokens"], 120) << "20 each";
  EXPECT_EQ(json_["users"], 3);
}

TEST_F(BenchCommandTest, ADurationEndsTheArrivalsNotTheRequests) {
  EXPECT_EQ(Bench({"--duration-s", "0.2", "--streams", "2", "--output-tokens", "20"}), 0);
  EXPECT_GT(json_["requests"], 2);
  EXPECT_EQ(json_["completed"], json_["requests"]);
  EXPECT_EQ(json_["tokens"].get<int>(), 20 * json_["requests"].get<int>());
  EXPECT_GE(json_["wall_s"], 0.2);
}

TEST_F(BenchCommandTest, LengthsOfTheShareGptMixFitTheContext) {
  EXPECT_EQ(Bench({"--lengths", "sharegpt", "--streams", "8", "--requests", "8", "--warmup", "0"}),
            0)
      << errors_;
  EXPECT_EQ(json_["lengths"], "sharegpt");
  EXPECT_EQ(json_["completed"], 8);
}

TEST_F(BenchCommandTest, SeveralAddressesShareTheRequestsEvenly) {
  FakeServer other;
  connect_ = server_.address() + "," + other.address();
  EXPECT_EQ(Bench({"--streams", "4", "--requests", "12", "--output-tokens", "2"}), 0) << errors_;
  ASSERT_EQ(json_["addresses"].size(), 2U);
  EXPECT_EQ(json_["addresses"][0]["sent"], 6);
  EXPECT_EQ(json_["addresses"][1]["sent"], 6);
  EXPECT_EQ(json_["addresses"][1]["address"], other.address());
  EXPECT_EQ(json_["tokens"], 24);
  EXPECT_THAT(output_, HasSubstr(other.address()));
}

TEST_F(BenchCommandTest, TheOneWithFewestInFlightGetsTheNext) {
  FakeServer slow;
  slow.pause_ms_ = 300;
  connect_ = server_.address() + "," + slow.address();
  EXPECT_EQ(Bench({"--streams", "2", "--requests", "20", "--output-tokens", "2", "--balance",
                   "least-in-flight"}),
            0)
      << errors_;
  EXPECT_GT(json_["addresses"][0]["sent"], json_["addresses"][1]["sent"]);
}

TEST_F(BenchCommandTest, AddressesOfDifferentModelsAreRefused) {
  FakeServer other;
  other.vocabulary_ = 99;
  connect_ = server_.address() + "," + other.address();
  EXPECT_EQ(Bench({}), 1);
  EXPECT_THAT(errors_, HasSubstr("another vocabulary"));
  EXPECT_EQ(Bench({"--sweep"}), 2);
  EXPECT_THAT(errors_, HasSubstr("one address only with --sweep"));
}

TEST_F(BenchCommandTest, FailuresAreCountedByCodeAndEndWithCode1) {
  server_.most_calls_ = 3;
  EXPECT_EQ(Bench({"--streams", "1", "--requests", "5", "--output-tokens", "2"}), 1);
  EXPECT_EQ(json_["completed"], 2);
  EXPECT_EQ(json_["failed"], 3);
  EXPECT_EQ(json_["errors"]["RESOURCE_EXHAUSTED"], 3);
  EXPECT_THAT(output_, HasSubstr("3 of 5 requests failed, the first with RESOURCE_EXHAUSTED"));
}

TEST_F(BenchCommandTest, ARefusedWarmUpEndsItAtOnce) {
  server_.most_calls_ = 0;
  EXPECT_EQ(Bench({}), 1);
  EXPECT_EQ(errors_, "pergola: bench: RESOURCE_EXHAUSTED: full\n");
  EXPECT_EQ(output_, "");
}

TEST_F(BenchCommandTest, ASweepFindsTheLargestBatchThatFits) {
  server_.most_at_once_ = 4;
  server_.pause_ms_ = 5;  // 100 ms a stream: on a busy machine too all begin before one ends
  EXPECT_EQ(Bench({"--sweep", "--sweep-contexts", "4,2000", "--sweep-repeats", "1",
                   "--output-tokens", "40"}),
            0)
      << errors_;
  const auto& points = json_["points"];
  ASSERT_EQ(points.size(), 5U) << json_;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(points[i]["batch"], 1 << i);
    EXPECT_TRUE(points[i]["fits"]) << json_;
    EXPECT_GT(points[i]["first_token_ms"], 0.0);
    EXPECT_GT(points[i]["step_ms"], 0.0);
  }
  EXPECT_EQ(points[3]["batch"], 8);
  EXPECT_FALSE(points[3]["fits"]);
  EXPECT_THAT(std::string(points[3]["remark"]), HasSubstr("of 8 refused or failed: RESOURCE_EX"));
  EXPECT_EQ(points[4]["remark"], "2040 tokens are above the context length of 1024");
  EXPECT_EQ(json_["largest_batches"][0]["batch"], 4);
  EXPECT_THAT(output_, HasSubstr("largest batch that fits at context 2000: none"));
}

TEST_F(BenchCommandTest, PlotsAreWrittenBesideTheTable) {
  EXPECT_EQ(Bench({"--streams", "2", "--output-tokens", "4", "--svg", folder_ + "/plot"}), 0);
  for (const char* name : {"plot-latency.svg", "plot-tokens.svg"}) {
    EXPECT_THAT(Read(name), StartsWith("<?xml")) << name;
    EXPECT_THAT(Read(name), HasSubstr("<polyline")) << name;
  }
  EXPECT_EQ(Bench({"--svg", folder_ + "/none/plot"}), 2);
  EXPECT_THAT(errors_, StartsWith("pergola: --svg: cannot write "));
}

TEST_F(BenchCommandTest, JsonOnStandardOutputStandsAlone) {
  EXPECT_EQ(Run({"bench", "--connect", server_.address(), "--output-tokens", "2", "--json", "-"}),
            0);
  EXPECT_EQ(nlohmann::json::parse(output_)["completed"], 4);
  EXPECT_THAT(errors_, HasSubstr("time to first token"));
}

TEST_F(BenchCommandTest, AnInterruptionReportsWhatWasMeasured) {
  server_.pause_ms_ = 5;
  // To this thread alone: the server's threads in this process do not wait for the signal.
  const pthread_t bench = pthread_self();
  std::thread killer([this, bench] {
    while (server_.calls_ < 5) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    pthread_kill(bench, SIGINT);
  });
  EXPECT_EQ(Bench({"--streams", "2", "--duration-s", "60", "--output-tokens", "10"}), 130);
  killer.join();
  EXPECT_TRUE(json_["interrupted"]) << errors_;
  EXPECT_GT(json_["completed"], 0);
  EXPECT_EQ(json_["failed"], 0);
  EXPECT_THAT(output_, HasSubstr("interrupted"));
}

}  // namespace
}  // namespace pergola
