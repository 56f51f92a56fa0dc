// The operator's door pergola.v1.Admin behind the internal door: Status and Drain.
#pragma once

#include <functional>
#include <string>

#include "coordinator/engine/engine.h"
#include "coordinator/link/internal_door.h"
#include "pergola/v1/admin.pb.h"

namespace pergola {

// Bounds of DrainRequest.timeout_ms.
inline constexpr uint32_t kDefaultDrainMs = 30'000;
inline constexpr uint32_t kMaxDrainMs = 86'400'000;

class AdminService final {
 public:
  // Adds its methods to `door`. `engine` and `door` are borrowed. `on_drained` runs once the answer
  // of a Drain has gone out, on a gRPC thread.
  AdminService(Engine* engine, InternalDoor* door, std::string model,
               std::function<void()> on_drained);

 private:
  void Status(UnaryCall* call);
  void Drain(const v1::DrainRequest& request, UnaryCall* call);

  Engine* const engine_;
  const std::string model_;
  const std::function<void()> on_drained_;
};

}  // namespace pergola
