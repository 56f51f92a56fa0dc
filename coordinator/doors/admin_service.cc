#include "coordinator/doors/admin_service.h"

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "coordinator/doors/call_status.h"
#include "coordinator/doors/grpc_bytes.h"

namespace pergola {
namespace {

class DrainCall final : public grpc::ServerUnaryReactor {
 public:
  explicit DrainCall(const std::function<void()>& on_drained) : on_drained_(on_drained) {}
  void OnDone() override {
    if (drained_) on_drained_();
    delete this;
  }
  void Answer() {
    drained_ = true;
    Finish(grpc::Status::OK);
  }

 private:
  const std::function<void()>& on_drained_;
  std::atomic<bool> drained_{false};
};

}  // namespace

grpc::ServerUnaryReactor* AdminService::Status(grpc::CallbackServerContext* context,
                                               const v1::StatusRequest*,
                                               v1::StatusResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status allowed = token_->Check(*context);
  if (!allowed.ok()) {
    reactor->Finish(ToGrpc(allowed));
    return reactor;
  }
  engine_->Status([this, reactor, response](v1::StatusResponse status) {
    *response = std::move(status);
    if (response->model().empty()) response->set_model(model_);
    reactor->Finish(grpc::Status::OK);
  });
  return reactor;
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const v1::DrainRequest* request,
                                              v1::DrainResponse* response) {
  auto* call = new DrainCall(on_drained_);  // deletes itself in OnDone
  const absl::Status allowed = token_->Check(*context);
  if (!allowed.ok()) {
    call->Finish(ToGrpc(allowed));
    return call;
  }
  if (request->timeout_ms() > kMaxDrainMs) {
    Violations violations;
    violations.Add("timeout_ms", absl::StrCat(request->timeout_ms(), " exceeds the limit of ",
                                              kMaxDrainMs, " ms"));
    call->Finish(ToGrpc(violations.ToStatus()));
    return call;
  }
  const uint32_t timeout_ms = request->timeout_ms() > 0 ? request->timeout_ms() : kDefaultDrainMs;
  LOG_INFO("draining, for at most {} ms", timeout_ms);
  engine_->Drain(int64_t{timeout_ms} * 1000, [call, response](v1::DrainResponse result) {
    *response = std::move(result);
    call->Answer();
  });
  return call;
}

}  // namespace pergola
