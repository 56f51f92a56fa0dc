// The engine's side of one attached group: where plans go. Implemented over gRPC (coordinator/link)
// and by fakes. Calls come from the engine thread and never block; the link calls the engine back
// only by posting to it.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

class GroupLink {
 public:
  virtual ~GroupLink() = default;
  // The group was accepted under this epoch; plans follow.
  virtual void Welcome(uint64_t epoch) = 0;
  // At most depth plans are unanswered at any time, so the queue behind this is bounded.
  virtual void Send(std::shared_ptr<const v1::StepPlan> plan) = 0;
  // Ends the connection with a status for the peer. Nothing is sent after it.
  virtual void Close(const absl::Status& status) = 0;
};

}  // namespace pergola
