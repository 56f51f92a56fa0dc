#include "coordinator/doors/batch_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "coordinator/doors/wire.h"

namespace pergola {
namespace {

constexpr char kClientGone[] = "the client cancelled the call";

}  // namespace

BatchCall* BatchCall::Start(const DoorContext& door, grpc::CallbackServerContext* context,
                            const grpc::ByteBuffer* bytes, grpc::ByteBuffer* response) {
  auto call = std::make_shared<BatchCall>(door, context);
  call->self_ = call;
  // Every item has ended by then, so there is nothing but the call to end.
  call->watch_ = std::make_shared<WriteWatch>(
      door.slow_reader_timeout_ms,
      [weak = std::weak_ptr<BatchCall>(call)](const absl::Status& why) {
        if (const auto strong = weak.lock()) strong->call_.Cancel(why);
      });
  call->response_ = response;
  if (!call->place_.taken()) {
    call->Finish(ToGrpc(call->place_.Refusal()));
    return call.get();
  }
  const bool queued = door.text_pool->TryRun(
      bytes->Length(),
      [call, bytes, facts = CallFacts{DeadlineUs(*context), MetadataValue(*context, kTenantKey)}] {
        call->Admission(Flatten(*bytes), facts);
      });
  if (!queued) call->Finish(ToGrpc(TextPoolFull(door)));
  return call.get();
}

void BatchCall::Admission(const std::string& bytes, const CallFacts& facts) {
  std::vector<std::string_view> requests;
  Violations violations;
  const std::string& type = v1::GenerateBatchRequest::descriptor()->full_name();
  if (SplitItems(bytes, kMaxBatchRequests, type, &requests, &violations) &&
      (requests.empty() || requests.size() > kMaxBatchRequests)) {
    violations.Add("requests", requests.empty()
                                   ? absl::StrCat("empty; 1 to ", kMaxBatchRequests, " are needed")
                                   : absl::StrCat("more than the limit of ", kMaxBatchRequests));
  }
  if (!violations.empty()) {
    Finish(ToGrpc(violations.ToStatus()));
    return;
  }
  {
    MutexLock lock(mutex_);
    items_.resize(requests.size());
  }
  for (size_t i = 0; i < requests.size(); ++i) AdmitItem(requests[i], i, facts);
  {
    MutexLock lock(mutex_);
    all_admitted_ = true;
  }
  Collect();
}

void BatchCall::AdmitItem(std::string_view bytes, size_t index, const CallFacts& facts) {
  {
    MutexLock lock(mutex_);
    Item& item = items_[index];
    if (cancelled_) {
      item.ended = true;
      *item.result.mutable_status() = ToRpcStatus(absl::CancelledError(kClientGone));
      return;
    }
  }
  RunningRequest running;
  google::rpc::Status status = Admit(
      door_, bytes, absl::StrCat("requests[", index, "]."), facts,
      [weak = weak_from_this()] {
        if (const auto strong = weak.lock()) strong->OnMail();
      },
      &running);
  MutexLock lock(mutex_);
  Item& item = items_[index];
  item.running = std::move(running);
  item.ended = status.code() != 0;
  *item.result.mutable_status() = std::move(status);
  if (cancelled_) item.running.Cancel(absl::CancelledError(kClientGone));
}

void BatchCall::OnCancel() {
  MutexLock lock(mutex_);
  cancelled_ = true;
  for (const Item& item : items_) {
    if (!item.ended) item.running.Cancel(absl::CancelledError(kClientGone));
  }
}

void BatchCall::OnDone() {
  watch_->End();
  self_.reset();
}

void BatchCall::OnMail() {
  if (mail_posted_.exchange(true)) return;
  // Only a thread that has stopped refuses.
  if (!door_.delivery->Post(shared_from_this())) mail_posted_.store(false);
}

void BatchCall::TakeMail() {
  mail_posted_.store(false);
  Collect();
}

void BatchCall::TakeFrom(Item* item) {
  v1::GenerateBatchResult& result = item->result;
  std::vector<v1::GenerateResponse> messages;
  std::optional<absl::Status> end = item->running.Take(&messages);
  for (v1::GenerateResponse& message : messages) {
    if (const absl::Status held = held_.Add(message.SpaceUsedLong()); !held.ok()) {
      end = held;
      break;
    }
    while (static_cast<uint32_t>(result.completions_size()) <= message.index()) {
      result.add_completions();
    }
    v1::Completion& completion = *result.mutable_completions(static_cast<int>(message.index()));
    completion.mutable_ids()->MergeFrom(message.ids());
    completion.mutable_text()->append(message.text());
    completion.mutable_logprobs()->MergeFrom(message.logprobs());
    result.mutable_prompt_logprobs()->MergeFrom(message.prompt_logprobs());
    if (message.has_info()) result.mutable_info()->Swap(message.mutable_info());
    if (message.has_finish()) completion.mutable_finish()->Swap(message.mutable_finish());
  }
  if (!end) return;
  item->ended = true;
  item->expired = absl::IsDeadlineExceeded(*end);
  if (!end->ok()) item->running.Cancel(*end);
  *result.mutable_status() = ToRpcStatus(*end);
}

void BatchCall::Collect() {
  grpc::Status status;
  {
    MutexLock lock(mutex_);
    bool all_ended = all_admitted_;
    bool expired = false;
    for (Item& item : items_) {
      if (!item.ended && item.running.submitted()) TakeFrom(&item);
      all_ended = all_ended && item.ended;
      expired |= item.expired;
    }
    if (!all_ended || finished_) return;
    finished_ = true;
    // An item has no deadline but the call's.
    if (expired) {
      status = ToGrpc(
          absl::DeadlineExceededError("the call's deadline came before the last item's end"));
    } else if (cancelled_) {
      status = grpc::Status::CANCELLED;
    } else {
      v1::GenerateBatchResponse response;
      for (Item& item : items_) response.add_results()->Swap(&item.result);
      *response_ = ToByteBuffer(response);
    }
  }
  watch_->Begin();
  Finish(status);
}

}  // namespace pergola
