// The operator's door pergola.v1.Admin on the internal listener: Status and Drain, both with the
// join token.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "coordinator/engine/engine.h"
#include "coordinator/link/token_check.h"
#include "pergola/v1/admin.grpc.pb.h"

namespace pergola {

// Bounds of DrainRequest.timeout_ms.
inline constexpr uint32_t kDefaultDrainMs = 30'000;
inline constexpr uint32_t kMaxDrainMs = 86'400'000;

class AdminService final : public v1::Admin::CallbackService {
 public:
  // `engine` and `token` are borrowed. `on_drained` runs once the answer of a Drain has gone out,
  // on a gRPC thread.
  AdminService(Engine* engine, const TokenCheck* token, std::string model,
               std::function<void()> on_drained)
      : engine_(engine),
        token_(token),
        model_(std::move(model)),
        on_drained_(std::move(on_drained)) {}

  grpc::ServerUnaryReactor* Status(grpc::CallbackServerContext* context,
                                   const v1::StatusRequest* request,
                                   v1::StatusResponse* response) override;
  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override;

 private:
  Engine* const engine_;
  const TokenCheck* const token_;
  const std::string model_;
  const std::function<void()> on_drained_;
};

}  // namespace pergola
