#include "coordinator/link/results_call.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace pergola {

ResultsCall* ResultsCall::Start(Engine* engine, uint64_t connection, Register on_named) {
  auto call = std::make_shared<ResultsCall>(engine, connection, std::move(on_named));
  call->self_ = call;
  call->StartRead(&call->in_);
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
  std::string group;
  bool ended = false;
  {
    MutexLock lock(mutex_);
    group = group_;
    ended = ended_;
  }
  if (in_.has_hello()) {
    const std::string& name = in_.hello().group();
    if (!group.empty()) return absl::InvalidArgumentError("a second ResultsHello on one stream");
    if (name.empty() || name.size() > 64) {
      return absl::InvalidArgumentError(
          absl::StrCat("a group name has 1 to 64 bytes, not ", name.size()));
    }
    {
      MutexLock lock(mutex_);
      group_ = name;
    }
    on_named_(name, shared_from_this());
    engine_->ResultsConnected(name, connection_);
    return absl::OkStatus();
  }
  if (!in_.has_result()) {
    return absl::InvalidArgumentError("a ResultMessage with neither hello nor result");
  }
  if (group.empty()) return absl::InvalidArgumentError("a result before ResultsHello");
  // What an ended stream still delivers is of an older incarnation.
  if (!ended) engine_->GroupResult(std::move(group), std::move(*in_.mutable_result()));
  return absl::OkStatus();
}

void ResultsCall::OnDone() {
  std::string group;
  {
    MutexLock lock(mutex_);
    group = group_;
  }
  if (!group.empty()) engine_->ResultsLost(std::move(group), connection_);
  self_.reset();
}

void ResultsCall::Close(const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    if (ended_) return;
    ended_ = true;
  }
  Finish(ToGrpc(status));
}

}  // namespace pergola
