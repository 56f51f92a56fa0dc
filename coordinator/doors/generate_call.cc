#include "coordinator/doors/generate_call.h"

#include <iterator>
#include <utility>
#include <vector>

#include "base/limits.h"

namespace pergola {
namespace {

constexpr char kClientGone[] = "the client cancelled the call";

}  // namespace

GenerateCall* GenerateCall::Start(const DoorContext& door, grpc::CallbackServerContext* context,
                                  const grpc::ByteBuffer* bytes, Kind kind) {
  auto call = std::make_shared<GenerateCall>(door, context, kind);
  call->self_ = call;
  call->watch_ = std::make_shared<WriteWatch>(
      door.slow_reader_timeout_ms,
      [weak = std::weak_ptr<GenerateCall>(call)](const absl::Status& why) {
        if (const auto strong = weak.lock()) strong->OnOverdue(why);
      });
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

void GenerateCall::Admission(std::string_view bytes, const CallFacts& facts) {
  if (Cancelled()) {
    Finish(grpc::Status::CANCELLED);
    return;
  }
  RunningRequest running;
  const auto notify = [weak = weak_from_this()] {
    if (const auto strong = weak.lock()) strong->OnMail();
  };
  const google::rpc::Status status = kind_ == Kind::kChat
                                         ? AdmitChat(door_, bytes, facts, notify, &running)
                                         : Admit(door_, bytes, "", facts, notify, &running);
  if (status.code() != 0) {
    Finish(ToGrpc(status));
    return;
  }
  {
    MutexLock lock(mutex_);
    running_ = std::move(running);
    if (cancelled_) running_.Cancel(absl::CancelledError(kClientGone));
  }
  watch_->Begin();
  StartSendInitialMetadata();
}

bool GenerateCall::Cancelled() {
  MutexLock lock(mutex_);
  return cancelled_;
}

void GenerateCall::OnCancel() {
  MutexLock lock(mutex_);
  cancelled_ = true;
  running_.Cancel(absl::CancelledError(kClientGone));
}

void GenerateCall::OnOverdue(const absl::Status& why) {
  {
    MutexLock lock(mutex_);
    // First the sequences: their slots and blocks are free whatever becomes of the call.
    running_.Cancel(why);
  }
  call_.Cancel(why);
}

void GenerateCall::OnDone() {
  watch_->End();
  self_.reset();
}

void GenerateCall::OnMail() {
  if (mail_posted_.exchange(true)) return;
  // Only a thread that has stopped refuses.
  if (!door_.delivery->Post(shared_from_this())) mail_posted_.store(false);
}

void GenerateCall::TakeMail() {
  mail_posted_.store(false);
  Deliver();
}

void GenerateCall::Continue(bool ok) {
  watch_->End();
  bool at_once = !ok;
  bool mail = false;
  {
    MutexLock lock(mutex_);
    busy_ = false;
    if (!ok) broken_ = true;
    // What was taken already goes out now, what came since in its round.
    at_once = at_once || !messages_.empty() || end_.has_value();
    if (!at_once) mail = std::exchange(mail_waits_, false);
  }
  if (!ok) OnCancel();
  if (at_once) Deliver();
  if (mail) OnMail();
}

std::optional<GenerateCall::Next> GenerateCall::TakeNext() {
  if (busy_) {
    mail_waits_ = true;
    return std::nullopt;
  }
  // Before the next look: the end may have come, and been told of, while the write was in flight.
  if (broken_) messages_.clear();
  if (messages_.empty() && !end_) {
    std::vector<v1::GenerateResponse> messages;
    end_ = running_.Take(&messages);
    messages_.assign(std::make_move_iterator(messages.begin()),
                     std::make_move_iterator(messages.end()));
    // One sequence has failed: the request has.
    if (end_ && !end_->ok()) running_.Cancel(*end_);
  }
  if (broken_) {
    messages_.clear();
    if (end_) end_ = absl::CancelledError(kClientGone);
  }
  Next next;
  if (!messages_.empty()) {
    next.message = std::move(messages_.front());
    messages_.pop_front();
    // The last message and a good end travel together; an error follows what was reached.
    if (end_ && end_->ok() && messages_.empty()) next.end = grpc::Status::OK;
  } else if (end_) {
    next.end = ToGrpc(ToRpcStatus(*end_));
  } else {
    return std::nullopt;
  }
  busy_ = true;
  return next;
}

void GenerateCall::Deliver() {
  std::optional<Next> next;
  {
    MutexLock lock(mutex_);
    next = TakeNext();
  }
  if (!next) return;
  watch_->Begin();
  if (!next->message) {
    Finish(*next->end);
    return;
  }
  out_ = ToByteBuffer(*next->message);
  if (next->end) {
    StartWriteAndFinish(&out_, grpc::WriteOptions(), *next->end);
  } else {
    StartWrite(&out_);
  }
}

}  // namespace pergola
