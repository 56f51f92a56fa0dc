// Against a running service: 200 concurrent streams each equal what they give alone, byte for byte;
// every sampling parameter in some of them; cancelled streams give every block back; batch items
// equal their streams; n sequences and scoring agree with single ones. Usage: streams_check PUBLIC
// INTERNAL TOKEN_FILE. Prints one line per check and exits 1 at the first that fails.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "pergola/v1/admin.grpc.pb.h"
#include "pergola/v1/generation.grpc.pb.h"

namespace pergola {
namespace {

constexpr int kStreams = 200;
constexpr uint64_t kSeed = 20240607;

[[noreturn]] void Fail(const std::string& what) {
  std::printf("FAIL: %s\n", what.c_str());
  std::exit(1);
}

struct Output {
  std::vector<int32_t> ids;
  std::string text;
  std::vector<float> logprobs;         // of the ids, where asked for
  std::vector<float> prompt_logprobs;  // of prompt ids 1, 2, ..., where asked for
  grpc::Status status;

  // In every bit.
  bool SameAs(const Output& other) const {
    return ids == other.ids && text == other.text && logprobs == other.logprobs &&
           prompt_logprobs == other.prompt_logprobs;
  }
};

class Service {
 public:
  Service(const std::string& address, const std::string& internal, const std::string& token_file)
      : generation_(v1::Generation::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))),
        admin_(
            v1::Admin::NewStub(grpc::CreateChannel(internal, grpc::InsecureChannelCredentials()))) {
    std::ifstream(token_file) >> token_;
  }

  uint32_t VocabularySize() {
    grpc::ClientContext context;
    v1::ModelInfoResponse info;
    const grpc::Status status = generation_->ModelInfo(&context, {}, &info);
    if (!status.ok()) Fail("ModelInfo: " + status.error_message());
    return info.vocabulary_size();
  }

  // By index of the request's sequences. Cancels after `cancel_after` tokens of one of them unless
  // that is negative.
  std::vector<Output> RunAll(const v1::GenerateRequest& request, int cancel_after = -1) {
    grpc::ClientContext context;
    auto reader = generation_->Generate(&context, request);
    std::vector<Output> outputs(request.sampling().has_n() ? request.sampling().n() : 1);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      if (response.index() >= outputs.size()) Fail("a message of an index beyond n");
      Output& output = outputs[response.index()];
      output.ids.insert(output.ids.end(), response.ids().begin(), response.ids().end());
      output.text += response.text();
      for (const auto& logprobs : response.logprobs()) {
        output.logprobs.push_back(logprobs.logprob());
      }
      for (const auto& logprobs : response.prompt_logprobs()) {
        output.prompt_logprobs.push_back(logprobs.logprob());
      }
      if (cancel_after >= 0 && static_cast<int>(output.ids.size()) >= cancel_after) {
        context.TryCancel();
      }
    }
    const grpc::Status status = reader->Finish();
    for (Output& output : outputs) output.status = status;
    return outputs;
  }

  Output Run(const v1::GenerateRequest& request, int cancel_after = -1) {
    return RunAll(request, cancel_after)[0];
  }

  v1::GenerateBatchResponse RunBatch(const std::vector<v1::GenerateRequest>& requests) {
    grpc::ClientContext context;
    v1::GenerateBatchRequest batch;
    for (const auto& request : requests) *batch.add_requests() = request;
    v1::GenerateBatchResponse response;
    const grpc::Status status = generation_->GenerateBatch(&context, batch, &response);
    if (!status.ok()) Fail("GenerateBatch: " + status.error_message());
    return response;
  }

  v1::StatusResponse Status() {
    grpc::ClientContext context;
    context.AddMetadata(kJoinTokenKey, token_);
    v1::StatusResponse response;
    const grpc::Status status = admin_->Status(&context, {}, &response);
    if (!status.ok()) Fail("Status: " + status.error_message());
    return response;
  }

 private:
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::Admin::Stub> admin_;
  std::string token_;
};

// Each parameter is set in some streams, and most meet each other in one.
void MixParameters(int i, uint32_t vocabulary, v1::GenerateRequest* request) {
  v1::SamplingParameters& sampling = *request->mutable_sampling();
  if (i % 3 == 0) sampling.set_repetition_penalty(1.3F);
  if (i % 5 == 0) sampling.set_presence_penalty(0.7F);
  if (i % 5 == 1) sampling.set_frequency_penalty(0.4F);
  if (i % 7 == 0) sampling.set_no_repeat_ngram_size(2);
  if (i % 7 == 1) sampling.set_min_p(0.02F);
  if (i % 7 == 2) sampling.set_typical_p(0.9F);
  if (i % 4 == 0) sampling.set_logprobs(static_cast<uint32_t>(i % 21));
  if (i % 6 == 0) {
    (*sampling.mutable_logit_bias())[static_cast<int32_t>(i % vocabulary)] = 3;
    (*sampling.mutable_logit_bias())[static_cast<int32_t>((i + 7) % vocabulary)] = -100;
  }
  if (i % 9 == 0) request->set_prompt_logprobs(2);
  if (i % 10 == 0) request->set_echo(true);
  request->set_priority(i % 5 - 2);
  if (i % 8 != 3) return;
  request->mutable_stop()->set_ignore_eos(false);
  request->mutable_stop()->set_min_new_tokens(20);
}

std::vector<v1::GenerateRequest> MakeRequests(uint32_t vocabulary) {
  std::mt19937_64 random(kSeed);
  const auto any_id = [&] { return static_cast<int32_t>(random() % vocabulary); };
  // Some prompts begin alike: they share blocks.
  std::vector<int32_t> common(100);
  for (int32_t& id : common) id = any_id();
  std::vector<v1::GenerateRequest> requests(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    const auto prompt_tokens = 1 + random() % 150;
    auto& ids = *requests[i].mutable_tokens()->mutable_ids();
    if (i % 3 == 1) ids.Add(common.begin(), common.end());
    for (uint64_t t = 0; t < prompt_tokens; ++t) ids.Add(any_id());
    requests[i].mutable_stop()->set_max_new_tokens(32 + random() % 64);
    requests[i].mutable_stop()->set_ignore_eos(true);
    requests[i].mutable_sampling()->set_temperature(i % 2 == 0 ? 0.0F : 0.8F);
    requests[i].mutable_sampling()->set_seed(random());
    if (i % 4 == 1) requests[i].mutable_sampling()->set_top_k(20);
    if (i % 4 == 3) requests[i].mutable_sampling()->set_top_p(0.9F);
    MixParameters(i, vocabulary, &requests[i]);
  }
  return requests;
}

double Entries(const v1::StatusResponse& status) {
  return status.mean_batch() * static_cast<double>(status.plans_total());
}

std::vector<Output> RunTogether(Service& service, const std::vector<v1::GenerateRequest>& requests,
                                const std::vector<int>& cancel_after) {
  std::vector<Output> outputs(requests.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < requests.size(); ++i) {
    threads.emplace_back([&, i] { outputs[i] = service.Run(requests[i], cancel_after[i]); });
  }
  for (auto& thread : threads) thread.join();
  return outputs;
}

void CheckTogetherEqualsAlone(Service& service, const std::vector<v1::GenerateRequest>& requests,
                              const std::vector<Output>& alone) {
  const v1::StatusResponse before = service.Status();
  const auto together = RunTogether(service, requests, std::vector<int>(kStreams, -1));
  const v1::StatusResponse after = service.Status();
  for (int i = 0; i < kStreams; ++i) {
    if (!together[i].status.ok()) Fail("stream " + std::to_string(i));
    if (!together[i].SameAs(alone[i])) {
      Fail("stream " + std::to_string(i) + " differs from what it gives alone");
    }
  }
  const double mean_batch = (Entries(after) - Entries(before)) /
                            static_cast<double>(after.plans_total() - before.plans_total());
  std::printf("%d streams equal what they give alone; mean batch %.1f\n", kStreams, mean_batch);
  if (after.prefix_hit_tokens() == before.prefix_hit_tokens()) Fail("no prompt shared a block");
  if (mean_batch < 16) Fail("the mean batch is below 16: the streams hardly ran together");
}

void CheckCancelledStreamsReturnBlocks(Service& service,
                                       const std::vector<v1::GenerateRequest>& requests,
                                       const std::vector<Output>& alone) {
  std::mt19937_64 random(kSeed + 1);
  std::vector<int> cancel_after(kStreams, -1);
  for (int i = 0; i < kStreams; i += 2) cancel_after[i] = static_cast<int>(random() % 30);
  const auto outputs = RunTogether(service, requests, cancel_after);
  for (int i = 0; i < kStreams; ++i) {
    if (cancel_after[i] >= 0) {
      if (outputs[i].status.error_code() != grpc::StatusCode::CANCELLED) {
        Fail("cancelled stream " + std::to_string(i) + " ended otherwise");
      }
    } else if (!outputs[i].SameAs(alone[i])) {
      Fail("stream " + std::to_string(i) + " beside cancelled ones differs");
    }
  }
  for (int wait = 0; wait < 100; ++wait) {
    const v1::StatusResponse status = service.Status();
    if (status.running() == 0 && status.queued() == 0 && status.groups(0).blocks_used() == 0 &&
        status.groups(0).slots_used() == 0) {
      std::printf("cancelled streams gave back every slot and block\n");
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  Fail("slots or blocks are still in use 2 s after the last stream ended");
}

void CheckBatchEqualsStreams(Service& service, std::vector<v1::GenerateRequest> requests,
                             const std::vector<Output>& alone) {
  requests.resize(16);
  requests[3].mutable_sampling()->set_top_p(7);  // one bad item fails alone
  const v1::GenerateBatchResponse response = service.RunBatch(requests);
  if (response.results_size() != 16) Fail("the batch has another number of results");
  for (int i = 0; i < 16; ++i) {
    const auto& result = response.results(i);
    if (i == 3) {
      if (result.status().code() != static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT)) {
        Fail("the bad item of the batch was not refused");
      }
      continue;
    }
    const v1::Completion& whole = result.completions(0);
    const std::vector<int32_t> ids(whole.ids().begin(), whole.ids().end());
    if (ids != alone[i].ids || whole.text() != alone[i].text) {
      Fail("batch item " + std::to_string(i) + " differs from its stream");
    }
  }
  std::printf("batch items equal their streams\n");
}

// The sequences of one request: each has draws of its own, the first those of a request for one.
void CheckSequences(Service& service, v1::GenerateRequest request) {
  request.mutable_sampling()->set_temperature(0.9F);
  request.mutable_sampling()->clear_n();
  const Output single = service.Run(request);
  request.mutable_sampling()->set_n(4);
  const auto several = service.RunAll(request);
  const auto again = service.RunAll(request);
  if (!several[0].status.ok()) Fail("n = 4: " + several[0].status.error_message());
  if (several[0].ids != single.ids) Fail("index 0 of n = 4 differs from the request for one");
  if (several[1].ids == single.ids) Fail("index 1 drew what index 0 drew");
  for (size_t i = 0; i < several.size(); ++i) {
    if (!several[i].SameAs(again[i])) Fail("index " + std::to_string(i) + " is not repeatable");
  }
  if (service.Status().forks() == 0) Fail("no sequence started from another's blocks");
  std::printf("sequences of one request share its prompt and draw for themselves\n");
}

// What the ids were told when they were sampled, scoring them tells again.
void CheckScoring(Service& service, v1::GenerateRequest request) {
  request.mutable_sampling()->Clear();
  request.mutable_sampling()->set_logprobs(0);
  const Output told = service.Run(request);
  auto& ids = *request.mutable_tokens()->mutable_ids();
  ids.Add(told.ids.begin(), told.ids.end());
  request.clear_stop();
  request.mutable_stop()->set_max_new_tokens(0);
  request.set_prompt_logprobs(0);
  const Output scored = service.Run(request);
  if (!scored.status.ok()) Fail("scoring: " + scored.status.error_message());
  if (scored.prompt_logprobs.size() + 1 != static_cast<size_t>(ids.size())) {
    Fail("scoring gave " + std::to_string(scored.prompt_logprobs.size()) + " log-probabilities");
  }
  const std::vector<float> tail(scored.prompt_logprobs.end() - static_cast<int>(told.ids.size()),
                                scored.prompt_logprobs.end());
  if (tail != told.logprobs) Fail("scoring differs from what was told when sampling");
  std::printf("scoring tells what sampling told\n");
}

int Main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: streams_check PUBLIC INTERNAL TOKEN_FILE\n");
    return 2;
  }
  Service service(argv[1], argv[2], argv[3]);
  const auto requests = MakeRequests(service.VocabularySize());
  std::vector<Output> alone;
  for (const auto& request : requests) {
    alone.push_back(service.Run(request));
    if (!alone.back().status.ok()) Fail("alone: " + alone.back().status.error_message());
    const v1::StopConditions& stop = request.stop();
    const uint32_t least = stop.ignore_eos() ? stop.max_new_tokens() : stop.min_new_tokens();
    if (alone.back().ids.size() < least) Fail("alone: too few tokens");
  }
  CheckTogetherEqualsAlone(service, requests, alone);
  CheckCancelledStreamsReturnBlocks(service, requests, alone);
  CheckBatchEqualsStreams(service, requests, alone);
  CheckSequences(service, requests[1]);
  CheckScoring(service, requests[2]);
  std::printf("PASS streams_check\n");
  return 0;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  return pergola::Main(argc, argv);
}
