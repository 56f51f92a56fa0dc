// Against a running service: 64 concurrent streams each equal what they give alone, byte for byte;
// cancelled streams give every block back; batch items equal their streams. Usage: streams_check
// PUBLIC INTERNAL TOKEN_FILE Prints one line per check and exits 1 at the first that fails.
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

constexpr int kStreams = 64;
constexpr uint64_t kSeed = 20240607;

[[noreturn]] void Fail(const std::string& what) {
  std::printf("FAIL: %s\n", what.c_str());
  std::exit(1);
}

struct Output {
  std::vector<int32_t> ids;
  std::string text;
  grpc::Status status;
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

  // Cancels after `cancel_after` tokens unless that is negative.
  Output Run(const v1::GenerateRequest& request, int cancel_after = -1) {
    grpc::ClientContext context;
    auto reader = generation_->Generate(&context, request);
    Output output;
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
      output.ids.insert(output.ids.end(), response.ids().begin(), response.ids().end());
      output.text += response.text();
      if (cancel_after >= 0 && static_cast<int>(output.ids.size()) >= cancel_after) {
        context.TryCancel();
      }
    }
    output.status = reader->Finish();
    return output;
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

std::vector<v1::GenerateRequest> MakeRequests(uint32_t vocabulary) {
  std::mt19937_64 random(kSeed);
  std::vector<v1::GenerateRequest> requests(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    const auto prompt_tokens = 1 + random() % 150;
    for (uint64_t t = 0; t < prompt_tokens; ++t) {
      requests[i].mutable_tokens()->add_ids(static_cast<int32_t>(random() % vocabulary));
    }
    requests[i].mutable_stop()->set_max_new_tokens(32 + random() % 64);
    requests[i].mutable_stop()->set_ignore_eos(true);
    requests[i].mutable_sampling()->set_temperature(i % 2 == 0 ? 0.0F : 0.8F);
    requests[i].mutable_sampling()->set_seed(random());
    if (i % 4 == 1) requests[i].mutable_sampling()->set_top_k(20);
    if (i % 4 == 3) requests[i].mutable_sampling()->set_top_p(0.9F);
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
    if (together[i].ids != alone[i].ids || together[i].text != alone[i].text) {
      Fail("stream " + std::to_string(i) + " differs from what it gives alone");
    }
  }
  const double mean_batch = (Entries(after) - Entries(before)) /
                            static_cast<double>(after.plans_total() - before.plans_total());
  std::printf("%d streams equal what they give alone; mean batch %.1f\n", kStreams, mean_batch);
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
    } else if (outputs[i].ids != alone[i].ids) {
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
    if (alone.back().ids.size() != request.stop().max_new_tokens()) Fail("alone: too few tokens");
  }
  CheckTogetherEqualsAlone(service, requests, alone);
  CheckCancelledStreamsReturnBlocks(service, requests, alone);
  CheckBatchEqualsStreams(service, requests, alone);
  std::printf("PASS streams_check\n");
  return 0;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  return pergola::Main(argc, argv);
}
