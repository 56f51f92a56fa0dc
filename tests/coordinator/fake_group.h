// A group of workers over real gRPC, without workers: it attaches, answers plans with tokens that
// depend on the last token and its position alone, and can be told to stall. So a test knows every
// stream beforehand.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/mutex.h"
#include "pergola/v1/worker.grpc.pb.h"
#include "tests/coordinator/served_model.h"

namespace pergola {

// The token after `id` at `position` in sequence `index` of a request: a letter.
inline int32_t NextToken(int32_t id, uint32_t position, uint32_t index = 0) {
  return 'a' +
         static_cast<int32_t>((static_cast<uint32_t>(id) * 31 + position * 7 + index * 5) % 26);
}

// What the group says of an id's probability.
inline float LogprobOf(int32_t id) {
  return -0.125F * static_cast<float>(id % 16);
}

inline v1::Logprobs LogprobsOf(int32_t id, uint32_t top) {
  v1::Logprobs logprobs;
  logprobs.set_logprob(LogprobOf(id));
  for (uint32_t i = 0; i < top; ++i) {
    logprobs.add_top_ids(static_cast<int32_t>(i));
    logprobs.add_top_logprobs(LogprobOf(static_cast<int32_t>(i)));
  }
  return logprobs;
}

// The text that follows `prompt`.
inline std::string Continuation(const std::vector<int32_t>& prompt, size_t tokens,
                                uint32_t index = 0) {
  std::string text;
  int32_t last = prompt.back();
  for (size_t i = 0; i < tokens; ++i) {
    last = NextToken(last, static_cast<uint32_t>(prompt.size() - 1 + i), index);
    text += static_cast<char>(last);
  }
  return text;
}

inline v1::Hello ByteHello() {
  v1::Hello hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_group("g0");
  hello.set_fingerprint("fingerprint");
  hello.set_text_hash("text hash");
  hello.set_numerics_id("numerics");
  hello.set_bitwise(true);
  hello.mutable_layout()->set_tensor_parallel(1);
  hello.mutable_layout()->set_pipeline_parallel(1);
  hello.mutable_layout()->add_stages()->set_layer_count(1);
  hello.set_vocabulary_size(kVocabulary);
  hello.set_context_length(4096);
  hello.set_block_count(512);
  hello.set_block_tokens(16);
  hello.set_slot_count(8);
  hello.set_step_tokens(512);
  return hello;
}

inline void AddToken(grpc::ClientContext* context, const std::string& token) {
  if (!token.empty()) context->AddMetadata(kJoinTokenKey, token);
}

class FakeGroup {
 public:
  FakeGroup(const std::string& address, const std::string& token, v1::Hello hello = ByteHello())
      : stub_(
            v1::Worker::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    AddToken(&results_context_, token);
    AddToken(&attach_context_, token);
    results_ = stub_->Results(&results_context_, &ack_);
    v1::ResultMessage name;
    name.mutable_hello()->set_group(hello.group());
    results_->Write(name);
    attach_ = stub_->Attach(&attach_context_);
    v1::WorkerMessage message;
    message.mutable_progress()->set_group(hello.group());
    message.mutable_progress()->set_phase("pretending");
    attach_->Write(message);
    *message.mutable_hello() = std::move(hello);
    attach_->Write(message);
    thread_ = std::thread([this] { Loop(); });
  }

  ~FakeGroup() { Stop(); }

  // Vanishes as a killed process would. Idempotent.
  void Stop() {
    SetPaused(false);
    attach_context_.TryCancel();
    results_context_.TryCancel();
    Join();
  }

  // Waits for the coordinator to end the Attach stream and says how it did.
  grpc::Status WaitForEnd() {
    Join();
    return status_;
  }

  // While paused, plans stay unanswered.
  void SetPaused(bool paused) {
    MutexLock lock(mutex_);
    paused_ = paused;
    changed_.NotifyAll();
  }

 private:
  void Join() {
    if (!thread_.joinable()) return;
    thread_.join();
    results_->WritesDone();
    results_->Finish();
  }

  void Loop() {
    v1::CoordinatorMessage message;
    while (attach_->Read(&message)) {
      if (!message.has_plan()) continue;
      {
        MutexLock lock(mutex_);
        while (paused_) changed_.Wait(mutex_);
      }
      v1::ResultMessage answer;
      Execute(message.plan(), answer.mutable_result());
      results_->Write(answer);
    }
    attach_->WritesDone();
    status_ = attach_->Finish();
  }

  void Execute(const v1::StepPlan& plan, v1::StepResult* result) {
    result->set_plan_id(plan.plan_id());
    result->set_epoch(plan.epoch());
    for (const v1::SlotStart& start : plan.starts()) starts_[start.slot()] = start;
    for (const v1::Entry& entry : plan.entries()) {
      const v1::SlotStart& start = starts_[entry.slot()];
      std::vector<int32_t> ids(entry.ids().begin(), entry.ids().end());
      if (ids.empty()) ids.push_back(last_sampled_[entry.slot()]);
      v1::EntryResult* out = result->add_entries();
      out->set_status(v1::ENTRY_STATUS_OK);
      for (const uint32_t offset : entry.logits_at()) {
        const int32_t id = NextToken(ids[offset], entry.first_position() + offset, start.index());
        out->add_ids(id);
        if (start.sampling().has_logprobs()) {
          *out->add_logprobs() = LogprobsOf(id, start.sampling().logprobs());
        }
      }
      for (const int32_t target : entry.targets()) {
        *out->add_target_logprobs() = LogprobsOf(target, entry.target_logprobs());
      }
      if (out->ids_size() > 0) last_sampled_[entry.slot()] = out->ids(out->ids_size() - 1);
    }
  }

  std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext results_context_;
  grpc::ClientContext attach_context_;
  v1::ResultsAck ack_;
  std::unique_ptr<grpc::ClientWriter<v1::ResultMessage>> results_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerMessage, v1::CoordinatorMessage>> attach_;
  std::map<uint32_t, v1::SlotStart> starts_;  // by slot
  std::map<uint32_t, int32_t> last_sampled_;  // by slot: what a TokenRef means
  grpc::Status status_;
  Mutex mutex_;
  CondVar changed_;
  bool paused_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace pergola
