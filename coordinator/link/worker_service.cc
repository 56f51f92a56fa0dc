#include "coordinator/link/worker_service.h"

#include <utility>

#include "base/status.h"
#include "coordinator/doors/call_status.h"
#include "coordinator/link/attach_call.h"
#include "coordinator/link/message_check.h"
#include "pergola/v1/worker.grpc.pb.h"

namespace pergola {

WorkerService::WorkerService(Engine* engine, InternalDoor* door) : engine_(engine) {
  const char* const name = v1::Worker::service_full_name();
  door->Add(name, "Attach", [this](grpc::CallbackServerContext* context) {
    return AttachCall::Start(engine_, &open_, next_connection_.fetch_add(1), context);
  });
  door->Add(name, "Results", [this](grpc::CallbackServerContext*) {
    return ResultsCall::Start(
        engine_, &open_, next_connection_.fetch_add(1),
        [this](const std::string& group, const std::shared_ptr<ResultsCall>& call) {
          Named(group, call);
        });
  });
  door->AddUnary<v1::Fault>(name, "ReportFault", [this](v1::Fault* fault, UnaryCall* call) {
    const absl::Status taken = TakeFault(fault);
    if (!taken.ok()) {
      call->Refuse(ToRpcStatus(taken));
      return;
    }
    engine_->GroupFault(std::move(*fault));
    call->Answer(v1::FaultAck());
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

}  // namespace pergola
