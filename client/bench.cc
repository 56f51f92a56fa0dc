// `pergola bench`: a closed loop of streams, each sending its next request when the last one has
// ended.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>

#include "base/cli/number_option.h"
#include "base/limits.h"
#include "base/mutex.h"
#include "base/status.h"
#include "client/bench_report.h"
#include "client/channel.h"
#include "client/commands.h"
#include "client/connect_flags.h"
#include "client/error_text.h"
#include "client/files.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {
namespace {

using Clock = std::chrono::steady_clock;

// A thread per stream; beyond this the client would measure itself.
constexpr uint32_t kMaxStreams = 1024;

struct BenchOptions {
  PublicTarget target;
  uint32_t streams = 1;
  uint32_t prompt_tokens = 128;
  uint32_t output_tokens = 128;
  uint32_t requests = 0;
  uint32_t warmup = 1;
  uint64_t seed = 1;
  uint32_t timeout_ms = 600000;
  std::string json;
};

double Milliseconds(Clock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

// The same ids for the same (seed, request) in every run and on every machine: splitmix64 of
// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
v1::GenerateRequest MakeRequest(const BenchOptions& options, uint32_t vocabulary, uint64_t number) {
  v1::GenerateRequest request;
  uint64_t state = options.seed * 0x9E3779B97F4A7C15ULL + (number << 32);
  for (uint32_t i = 0; i < options.prompt_tokens; ++i) {
    uint64_t z = (state += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
    request.mutable_tokens()->add_ids(static_cast<int32_t>(z % vocabulary));
  }
  request.mutable_stop()->set_max_new_tokens(options.output_tokens);
  request.mutable_stop()->set_ignore_eos(true);
  request.mutable_sampling()->set_temperature(0);
  return request;
}

class Bench {
 public:
  Bench(const BenchOptions& options, const std::string& address)
      : options_(options), channel_(Dial(address)), stub_(v1::Generation::NewStub(channel_)) {
    result_.address = address;
    result_.streams = options.streams;
    result_.prompt_tokens = options.prompt_tokens;
    result_.output_tokens = options.output_tokens;
    result_.requests = options.requests;
  }

  absl::Status Run() {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    v1::ModelInfoResponse info;
    RETURN_IF_ERROR(ToAbslStatus(stub_->ModelInfo(&context, v1::ModelInfoRequest(), &info)));
    if (info.vocabulary_size() == 0) {
      return absl::FailedPreconditionError("the server's model has a vocabulary of size 0");
    }
    result_.model = info.model();
    vocabulary_ = info.vocabulary_size();
    for (uint32_t i = 0; i < options_.warmup; ++i) {
      BenchResult ignored;
      // Numbers of their own, so that a warm-up leaves no prefix for the measured requests.
      RETURN_IF_ERROR(ToAbslStatus(OneRequest((1ULL << 31) + i, ignored)));
    }
    const Clock::time_point start = Clock::now();
    std::vector<std::thread> threads;
    for (uint32_t i = 0; i < options_.streams; ++i) threads.emplace_back([this] { Stream(); });
    for (std::thread& thread : threads) thread.join();
    result_.wall_s = Milliseconds(Clock::now() - start) / 1e3;
    return absl::OkStatus();
  }

  BenchResult& result() { return result_; }

 private:
  void Stream() {
    BenchResult own;
    while (true) {
      const uint32_t number = next_.fetch_add(1);
      if (number >= options_.requests) break;
      const grpc::Status status = OneRequest(number, own);
      if (status.ok()) continue;
      if (own.failed++ == 0) own.first_error = ErrorText(status);
    }
    MutexLock lock(mutex_);
    result_.failed += own.failed;
    if (result_.first_error.empty()) result_.first_error = own.first_error;
    result_.tokens += own.tokens;
    result_.first_token_ms.insert(result_.first_token_ms.end(), own.first_token_ms.begin(),
                                  own.first_token_ms.end());
    result_.inter_token_ms.insert(result_.inter_token_ms.end(), own.inter_token_ms.begin(),
                                  own.inter_token_ms.end());
  }

  grpc::Status OneRequest(uint64_t number, BenchResult& own) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::milliseconds(options_.timeout_ms));
    const v1::GenerateRequest request = MakeRequest(options_, vocabulary_, number);
    const Clock::time_point start = Clock::now();
    Clock::time_point last = start;
    bool any = false;
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      if (message.ids().empty()) continue;
      const Clock::time_point now = Clock::now();
      own.tokens += static_cast<uint64_t>(message.ids_size());
      if (any) {
        AddGap(Milliseconds(now - last), message.ids_size(), own.inter_token_ms);
      } else {
        own.first_token_ms.push_back(Milliseconds(now - start));
      }
      any = true;
      last = now;
    }
    return reader->Finish();
  }

  const BenchOptions options_;
  const std::shared_ptr<grpc::Channel> channel_;  // second owner: the stub
  const std::unique_ptr<v1::Generation::Stub> stub_;
  uint32_t vocabulary_ = 0;
  std::atomic<uint32_t> next_{0};
  Mutex mutex_;
  BenchResult result_;  // written by the streams under mutex_, read when they have ended
};

int RunBench(BenchOptions options) {
  if (options.requests == 0) options.requests = 4 * options.streams;
  // Not after minutes of measuring.
  const absl::Status writable =
      options.json.empty() ? absl::OkStatus() : CheckWritable(options.json);
  if (!writable.ok()) return Fail(Prefixed(writable, "--json"), kExitUsage);
  const absl::StatusOr<std::string> address = PublicAddress(options.target);
  if (!address.ok()) return Fail(address.status(), kExitUsage);
  Bench bench(options, *address);
  const absl::Status status = bench.Run();
  if (!status.ok()) return Fail(Prefixed(status, "bench"), 1);
  std::fputs(BenchText(bench.result()).c_str(), stdout);
  if (!options.json.empty()) {
    std::ofstream file(options.json);
    file << BenchJson(bench.result());
    file.close();
    if (!file) return Fail(absl::DataLossError(absl::StrCat("cannot write ", options.json)), 1);
  }
  return bench.result().failed == 0 ? kExitOk : 1;
}

}  // namespace

void AddBench(CLI::App& app, const Context& context, int* exit_code) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command = app.add_subcommand(
      "bench", "Measure time to first token, time between tokens and tokens per second");
  AddPublicFlags(*command, context, &options->target);
  AddNumber(*command, "--streams", &options->streams, {1, kMaxStreams}, "requests at once")
      ->capture_default_str();
  AddNumber(*command, "--prompt-tokens", &options->prompt_tokens, {1, 1 << 24},
            "random ids per prompt")
      ->capture_default_str();
  AddNumber(*command, "--output-tokens", &options->output_tokens, {1, 1 << 24},
            "new tokens per request")
      ->capture_default_str();
  AddNumber(*command, "--requests", &options->requests, {1, 100'000'000},
            "requests in all (default: 4 times the streams)");
  AddNumber(*command, "--warmup", &options->warmup, {0, 10'000},
            "requests before the measurement, one by one")
      ->capture_default_str();
  AddNumber(*command, "--seed", &options->seed, {0, UINT64_MAX}, "of the random prompts")
      ->capture_default_str();
  AddNumber(*command, "--timeout-ms", &options->timeout_ms, {1, 86'400'000},
            "milliseconds one request may take")
      ->capture_default_str();
  command->add_option("--json", options->json, "also write the numbers to this file as JSON");
  command->callback([=] { *exit_code = RunBench(*options); });
}

}  // namespace pergola
