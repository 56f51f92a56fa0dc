#include "coordinator/link/results_call.h"

#include <utility>

#include "base/status.h"
#include "coordinator/doors/grpc_bytes.h"
#include "coordinator/link/message_check.h"

namespace pergola {

ResultsCall* ResultsCall::Start(Engine* engine, OpenCalls* open, uint64_t connection,
                                Register on_named) {
  auto call = std::make_shared<ResultsCall>(engine, open, connection, std::move(on_named));
  call->self_ = call;
  call->StartRead(&call->in_);
  open->Add(connection, [weak = call->weak_from_this()](const absl::Status& status) {
    if (const auto strong = weak.lock()) strong->Close(status);
  });
  return call.get();
}

void ResultsCall::OnReadDone(bool ok) {
  if (!ok) {
    Close(absl::OkStatus());
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

absl::Status ResultsCall::Handle() {
  v1::ResultMessage message;
  RETURN_IF_ERROR(ParseBytes(in_, &message));
  std::string group;
  bool ended = false;
  {
    MutexLock lock(mutex_);
    group = group_;
    ended = ended_;
  }
  if (message.has_hello()) {
    const std::string& name = message.hello().group();
    if (!group.empty()) return absl::InvalidArgumentError("a second ResultsHello on one stream");
    RETURN_IF_ERROR(CheckGroupName(name));
    {
      MutexLock lock(mutex_);
      group_ = name;
    }
    on_named_(name, shared_from_this());
    engine_->ResultsConnected(name, connection_);
    return absl::OkStatus();
  }
  if (!message.has_result()) {
    return absl::InvalidArgumentError("a ResultMessage with neither hello nor result");
  }
  if (group.empty()) return absl::InvalidArgumentError("a result before ResultsHello");
  // What an ended stream still delivers is of an older incarnation.
  if (!ended) engine_->GroupResult(std::move(group), std::move(*message.mutable_result()));
  return absl::OkStatus();
}

void ResultsCall::OnDone() {
  std::string group;
  {
    MutexLock lock(mutex_);
    group = group_;
  }
  open_->Remove(connection_);
  if (!group.empty()) engine_->ResultsLost(std::move(group), connection_);
  self_.reset();
}

void ResultsCall::Close(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    if (ended_) return;
    ended_ = true;
  }
  if (!status.ok()) {
    Finish(ToGrpc(status));
    return;
  }
  out_ = ToByteBuffer(v1::ResultsAck());
  StartWriteAndFinish(&out_, grpc::WriteOptions(), grpc::Status::OK);
}

}  // namespace pergola
