#include "coordinator/link/worker_service.h"

#include <utility>

#include "coordinator/doors/call_status.h"
#include "coordinator/doors/grpc_bytes.h"
#include "coordinator/link/attach_call.h"

namespace pergola {
namespace {

// What a rank says of its end is kept for people; more than this is not read by any.
constexpr size_t kMaxFaultTextBytes = 4096;

template <typename Reactor>
class Refused final : public Reactor {
 public:
  explicit Refused(const absl::Status& status) { this->Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* WorkerService::Attach(
    grpc::CallbackServerContext* context) {
  const absl::Status allowed = token_->Check(*context);
  if (!allowed.ok()) {
    return new Refused<grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>>(allowed);
  }
  return AttachCall::Start(engine_, next_connection_.fetch_add(1), context);
}

grpc::ServerReadReactor<v1::ResultMessage>* WorkerService::Results(
    grpc::CallbackServerContext* context, v1::ResultsAck*) {
  const absl::Status allowed = token_->Check(*context);
  if (!allowed.ok()) return new Refused<grpc::ServerReadReactor<v1::ResultMessage>>(allowed);
  return ResultsCall::Start(
      engine_, next_connection_.fetch_add(1),
      [this](const std::string& group, const std::shared_ptr<ResultsCall>& call) {
        Named(group, call);
      });
}

void WorkerService::Named(const std::string& group, const std::shared_ptr<ResultsCall>& call) {
  std::shared_ptr<ResultsCall> older;
  {
    MutexLock lock(mutex_);
    for (auto it = results_.begin(); it != results_.end();) {
      it = it->second.expired() && it->first != group ? results_.erase(it) : std::next(it);
    }
    std::weak_ptr<ResultsCall>& place = results_[group];
    older = place.lock();
    place = call;
  }
  if (older) older->Close(absl::AbortedError("a newer Results stream of this group took over"));
}

grpc::ServerUnaryReactor* WorkerService::ReportFault(grpc::CallbackServerContext* context,
                                                     const v1::Fault* request, v1::FaultAck*) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status allowed = token_->Check(*context);
  if (allowed.ok()) {
    v1::Fault fault = *request;
    fault.set_text(CutText(std::move(*fault.mutable_text()), kMaxFaultTextBytes));
    engine_->GroupFault(std::move(fault));
  }
  reactor->Finish(ToGrpc(allowed));
  return reactor;
}

}  // namespace pergola
