#include "coordinator/doors/generate_call.h"

#include <utility>

namespace pergola {
namespace {

constexpr char kClientGone[] = "the client cancelled the call";

}  // namespace

GenerateCall* GenerateCall::Start(const DoorContext& door, grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* bytes) {
  auto call = std::make_shared<GenerateCall>(door, context);
  call->self_ = call;
  call->watch_ = std::make_shared<WriteWatch>(
      door.slow_reader_timeout_ms,
      [weak = std::weak_ptr<GenerateCall>(call)](const absl::Status& why) {
        if (const auto strong = weak.lock()) strong->OnOverdue(why);
      });
  call->mailbox_ = std::make_shared<Mailbox>([weak = std::weak_ptr<GenerateCall>(call)] {
    if (const auto strong = weak.lock()) strong->OnMail();
  });
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

void GenerateCall::Admission(std::string_view bytes, TimeUs deadline) {
  if (Cancelled()) {
    Finish(grpc::Status::CANCELLED);
    return;
  }
  Admitted admitted;
  const google::rpc::Status status = Admit(door_, bytes, "", deadline, mailbox_, &admitted);
  if (status.code() != 0) {
    Finish(ToGrpc(status));
    return;
  }
  const SequenceId id = admitted.id;
  bool cancelled = false;
  {
    MutexLock lock(mutex_);
    admitted_ = std::move(admitted);
    submitted_ = true;
    cancelled = cancelled_;
  }
  if (cancelled) door_.engine->Cancel(id, absl::CancelledError(kClientGone));
  watch_->Begin();
  StartSendInitialMetadata();
}

bool GenerateCall::Cancelled() {
  MutexLock lock(mutex_);
  return cancelled_;
}

void GenerateCall::OnCancel() {
  SequenceId id = 0;
  {
    MutexLock lock(mutex_);
    cancelled_ = true;
    if (!submitted_) return;
    id = admitted_.id;
  }
  door_.engine->Cancel(id, absl::CancelledError(kClientGone));
}

void GenerateCall::OnOverdue(const absl::Status& why) {
  SequenceId id = 0;
  {
    MutexLock lock(mutex_);
    id = admitted_.id;
  }
  // First the sequence: its slot and blocks are free whatever becomes of the call.
  door_.engine->Cancel(id, why);
  call_.Cancel(why);
}

void GenerateCall::OnDone() {
  watch_->End();
  self_.reset();
}

void GenerateCall::OnMail() {
  if (mail_posted_.exchange(true)) return;
  const bool queued = door_.delivery_pool->TryRun(0, [call = shared_from_this()] {
    call->mail_posted_.store(false);
    call->Deliver();
  });
  // The pool holds a job per call in progress, so it has room for this one unless it has stopped.
  if (!queued) mail_posted_.store(false);
}

void GenerateCall::Continue(bool ok) {
  watch_->End();
  {
    MutexLock lock(mutex_);
    busy_ = false;
    if (!ok) broken_ = true;
  }
  if (!ok) OnCancel();
  Deliver();
}

void GenerateCall::Deliver() {
  Mailbox::Delivery delivery;
  std::optional<google::rpc::Status> end;
  {
    MutexLock lock(mutex_);
    if (busy_) return;
    if (end_) {
      end = end_;
    } else {
      delivery = mailbox_->Take();
      if (delivery.empty() || (broken_ && !delivery.ended)) return;
      if (broken_) end = ToRpcStatus(absl::CancelledError(kClientGone));
    }
    busy_ = true;
  }
  watch_->Begin();
  if (end) {
    Finish(ToGrpc(*end));
  } else {
    Write(std::move(delivery));
  }
}

void GenerateCall::Write(Mailbox::Delivery delivery) {
  const bool failed = delivery.ended && !delivery.status.ok();
  if (failed && delivery.ids.empty() && delivery.text.empty()) {
    Finish(ToGrpc(delivery.status));
    return;
  }
  v1::GenerateResponse response;
  response.mutable_ids()->Add(delivery.ids.begin(), delivery.ids.end());
  response.set_text(std::move(delivery.text));
  response.set_continuity(delivery.continuity);
  if (delivery.finish) *response.mutable_finish() = *std::move(delivery.finish);
  {
    MutexLock lock(mutex_);
    if (delivery.info) {
      *response.mutable_info() = *std::move(delivery.info);
      admitted_.Complete(response.mutable_info());
    }
    if (failed) end_ = ToRpcStatus(delivery.status);
  }
  out_ = ToByteBuffer(response);
  if (delivery.ended && !failed) {
    StartWriteAndFinish(&out_, grpc::WriteOptions(), grpc::Status::OK);
  } else {
    StartWrite(&out_);
  }
}

}  // namespace pergola
