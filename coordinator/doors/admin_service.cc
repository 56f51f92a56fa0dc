#include "coordinator/doors/admin_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "coordinator/doors/call_status.h"
#include "pergola/v1/admin.grpc.pb.h"

namespace pergola {

AdminService::AdminService(Engine* engine, InternalDoor* door, std::string model,
                           std::function<void()> on_drained)
    : engine_(engine), model_(std::move(model)), on_drained_(std::move(on_drained)) {
  const char* const name = v1::Admin::service_full_name();
  door->AddUnary<v1::StatusRequest>(
      name, "Status", [this](const v1::StatusRequest*, UnaryCall* call) { Status(call); });
  door->AddUnary<v1::DrainRequest>(
      name, "Drain",
      [this](const v1::DrainRequest* request, UnaryCall* call) { Drain(*request, call); });
}

void AdminService::Status(UnaryCall* call) {
  engine_->Status([this, call](v1::StatusResponse status) {
    if (status.model().empty()) status.set_model(model_);
    call->Answer(status);
  });
}

void AdminService::Drain(const v1::DrainRequest& request, UnaryCall* call) {
  if (request.timeout_ms() > kMaxDrainMs) {
    Violations violations;
    violations.Add("timeout_ms", absl::StrCat(request.timeout_ms(), " exceeds the limit of ",
                                              kMaxDrainMs, " ms"));
    call->Refuse(violations.ToStatus());
    return;
  }
  const uint32_t timeout_ms = request.timeout_ms() > 0 ? request.timeout_ms() : kDefaultDrainMs;
  LOG_INFO("draining, for at most {} ms", timeout_ms);
  engine_->Drain(int64_t{timeout_ms} * 1000, [this, call](const v1::DrainResponse& result) {
    call->Answer(result, on_drained_);
  });
}

}  // namespace pergola
