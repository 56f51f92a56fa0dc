#include "coordinator/link/attach_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/doors/grpc_bytes.h"
#include "coordinator/link/message_check.h"

namespace pergola {
namespace {

// Beside the plans in flight: Welcome and what a probe adds.
constexpr size_t kOutboxSlack = 4;

}  // namespace

AttachCall* AttachCall::Start(Engine* engine, OpenCalls* open, uint64_t connection,
                              grpc::CallbackServerContext* context) {
  auto call = std::make_shared<AttachCall>(engine, open, connection, context);
  call->self_ = call;
  call->StartRead(&call->in_);
  open->Add(connection, [weak = call->weak_from_this()](const absl::Status& status) {
    if (const auto strong = weak.lock()) strong->Close(status);
  });
  return call.get();
}

void AttachCall::OnReadDone(bool ok) {
  if (!ok) {
    Close(absl::OkStatus());  // the peer ended its side, or is gone
    return;
  }
  const absl::Status status = Handle();
  if (!status.ok()) {
    Close(status);
    return;
  }
  in_.Clear();
  StartRead(&in_);
}

absl::Status AttachCall::Handle() {
  v1::WorkerMessage message;
  RETURN_IF_ERROR(ParseControlMessage(in_, &message));
  {
    MutexLock lock(mutex_);
    if (hello_seen_) {
      return absl::InvalidArgumentError(message.has_hello() ? "a second Hello on one Attach stream"
                                                            : "a message after Hello");
    }
  }
  if (message.has_progress()) {
    RETURN_IF_ERROR(CheckProgress(message.progress()));
    RETURN_IF_ERROR(CheckName(message.progress().group()));
    engine_->GroupProgress(connection_, std::move(*message.mutable_progress()));
    return absl::OkStatus();
  }
  if (!message.has_hello()) {
    return absl::InvalidArgumentError("a WorkerMessage with neither progress nor hello");
  }
  RETURN_IF_ERROR(CheckHelloSizes(message.hello()));
  RETURN_IF_ERROR(CheckName(message.hello().group()));
  {
    MutexLock lock(mutex_);
    hello_seen_ = true;
    // The depth of DESIGN I3: stages + 1.
    const uint32_t stages = std::min(message.hello().layout().pipeline_parallel(), kMaxLayers);
    max_outbox_ = size_t{stages} + 1 + kOutboxSlack;
  }
  engine_->GroupAttached(connection_, std::move(*message.mutable_hello()), shared_from_this());
  return absl::OkStatus();
}

absl::Status AttachCall::CheckName(const std::string& group) {
  if (group_.empty()) group_ = group;
  if (group_ == group) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("group \"", group, "\" on the Attach stream of group \"", group_, "\""));
}

void AttachCall::OnWriteDone(bool ok) {
  {
    MutexLock lock(mutex_);
    writing_ = false;
    if (!ok && !end_) end_ = absl::UnavailableError("a write to the group failed");
  }
  WriteNext();
}

void AttachCall::OnDone() {
  // The last reaction, so it comes after any Hello of this connection reached the engine.
  absl::Status why;
  {
    MutexLock lock(mutex_);
    why = end_.value_or(absl::OkStatus());
    outbox_.clear();
  }
  if (why.ok()) why = absl::UnavailableError("the group's Attach stream ended");
  open_->Remove(connection_);
  engine_->GroupLost(connection_, why);
  self_.reset();
}

void AttachCall::Welcome(uint64_t epoch) {
  v1::Welcome welcome;
  welcome.set_epoch(epoch);
  Enqueue(std::move(welcome));
}

void AttachCall::Send(std::shared_ptr<const v1::StepPlan> plan) {
  Enqueue(std::move(plan));
}

void AttachCall::Enqueue(Outgoing message) {
  bool stuck = false;
  {
    MutexLock lock(mutex_);
    if (end_) return;
    if (outbox_.size() >= max_outbox_) {
      end_ = absl::ResourceExhaustedError(
          absl::StrCat("the group does not read: ", outbox_.size(), " messages wait"));
      outbox_.clear();
      stuck = true;
    } else {
      outbox_.push_back(std::move(message));
    }
  }
  // A write that waits for a peer that does not read ends only with the call.
  if (stuck) call_.Cancel(absl::ResourceExhaustedError("the group does not read"));
  WriteNext();
}

void AttachCall::Close(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    if (end_) return;
    end_ = status;
    outbox_.clear();
  }
  WriteNext();
}

void AttachCall::WriteNext() {
  std::optional<absl::Status> end;
  Outgoing next;
  {
    MutexLock lock(mutex_);
    if (writing_ || ended_) return;
    if (end_) {
      ended_ = true;
      end = end_;
    } else if (outbox_.empty()) {
      return;
    } else {
      writing_ = true;
      next = std::move(outbox_.front());
      outbox_.pop_front();
    }
  }
  if (end) {
    Finish(ToGrpc(*end));
    return;
  }
  v1::CoordinatorMessage message;
  if (auto* welcome = std::get_if<v1::Welcome>(&next)) {
    *message.mutable_welcome() = std::move(*welcome);
  } else {
    *message.mutable_plan() = *std::get<std::shared_ptr<const v1::StepPlan>>(next);
  }
  out_ = ToByteBuffer(message);
  StartWrite(&out_);
}

}  // namespace pergola
