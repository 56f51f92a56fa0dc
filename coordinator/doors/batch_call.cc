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
  const TimeUs deadline = DeadlineUs(*context);
  const bool queued = door.text_pool->TryRun(
      bytes->Length(), [call, bytes, deadline] { call->Admission(Flatten(*bytes), deadline); });
  if (!queued) call->Finish(ToGrpc(TextPoolFull()));
  return call.get();
}

void BatchCall::Admission(const std::string& bytes, TimeUs deadline) {
  std::vector<std::string_view> requests;
  Violations violations;
  if (SplitBatch(bytes, kMaxBatchRequests, &requests, &violations) &&
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
  for (size_t i = 0; i < requests.size(); ++i) AdmitItem(requests[i], i, deadline);
  {
    MutexLock lock(mutex_);
    all_admitted_ = true;
  }
  Collect();
}

void BatchCall::AdmitItem(std::string_view bytes, size_t index, TimeUs deadline) {
  auto mailbox = std::make_shared<Mailbox>([weak = weak_from_this()] {
    if (const auto strong = weak.lock()) strong->OnMail();
  });
  bool cancelled = false;
  {
    MutexLock lock(mutex_);
    items_[index].mailbox = mailbox;
    cancelled = cancelled_;
  }
  Admitted admitted;
  google::rpc::Status status;
  if (cancelled) {
    status = ToRpcStatus(absl::CancelledError(kClientGone));
  } else {
    status =
        Admit(door_, bytes, absl::StrCat("requests[", index, "]."), deadline, mailbox, &admitted);
  }
  const SequenceId id = admitted.id;
  bool cancel = false;
  {
    MutexLock lock(mutex_);
    Item& item = items_[index];
    item.submitted = status.code() == 0;
    item.ended = !item.submitted;
    item.admitted = std::move(admitted);
    *item.result.mutable_status() = std::move(status);
    cancel = item.submitted && cancelled_;
  }
  if (cancel) door_.engine->Cancel(id, absl::CancelledError(kClientGone));
}

void BatchCall::OnCancel() {
  std::vector<SequenceId> ids;
  {
    MutexLock lock(mutex_);
    cancelled_ = true;
    for (const Item& item : items_) {
      if (item.submitted && !item.ended) ids.push_back(item.admitted.id);
    }
  }
  for (const SequenceId id : ids) {
    door_.engine->Cancel(id, absl::CancelledError(kClientGone));
  }
}

void BatchCall::OnDone() {
  watch_->End();
  self_.reset();
}

void BatchCall::OnMail() {
  if (mail_posted_.exchange(true)) return;
  const bool queued = door_.delivery_pool->TryRun(0, [call = shared_from_this()] {
    call->mail_posted_.store(false);
    call->Collect();
  });
  // The pool holds a job per call in progress, so it has room for this one unless it has stopped.
  if (!queued) mail_posted_.store(false);
}

void BatchCall::Take(Item* item) {
  Mailbox::Delivery delivery = item->mailbox->Take();
  v1::GenerateBatchResult& result = item->result;
  result.mutable_ids()->Add(delivery.ids.begin(), delivery.ids.end());
  result.mutable_text()->append(delivery.text);
  if (delivery.info) {
    *result.mutable_info() = *std::move(delivery.info);
    item->admitted.Complete(result.mutable_info());
  }
  if (!delivery.ended) return;
  item->ended = true;
  *result.mutable_status() = ToRpcStatus(delivery.status);
  if (delivery.finish) *result.mutable_finish() = *std::move(delivery.finish);
}

void BatchCall::Collect() {
  grpc::Status status;
  {
    MutexLock lock(mutex_);
    bool all_ended = all_admitted_;
    bool expired = false;
    for (Item& item : items_) {
      if (item.submitted && !item.ended) Take(&item);
      all_ended = all_ended && item.ended;
      expired |=
          item.result.status().code() == static_cast<int>(absl::StatusCode::kDeadlineExceeded);
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
