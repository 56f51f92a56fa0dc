// One Attach stream: a group's progress and Hello in, Welcome and plans out. Moves messages and
// keeps their order; what they mean is the engine's business.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "base/mutex.h"
#include "coordinator/doors/call_handle.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/group_link.h"
#include "coordinator/link/open_calls.h"
#include "grpcpp/generic/async_generic_service.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

class AttachCall final : public grpc::ServerGenericBidiReactor,
                         public GroupLink,
                         public std::enable_shared_from_this<AttachCall> {
 public:
  // The reactor of one call; it owns itself until OnDone. The engine, told of a Hello, is its
  // second owner.
  static AttachCall* Start(Engine* engine, OpenCalls* open, uint64_t connection,
                           grpc::CallbackServerContext* context);
  AttachCall(Engine* engine, OpenCalls* open, uint64_t connection,
             grpc::CallbackServerContext* context)
      : engine_(engine), open_(open), connection_(connection), call_(context) {}

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone() override;

  void Welcome(uint64_t epoch) override;
  void Send(std::shared_ptr<const v1::StepPlan> plan) override;
  void Close(const absl::Status& status) override;

 private:
  using Outgoing = std::variant<v1::Welcome, std::shared_ptr<const v1::StepPlan>>;

  absl::Status Handle();
  // All messages of one stream speak of one group.
  absl::Status CheckName(const std::string& group);
  void Enqueue(Outgoing message);
  // Starts the next write, or the end, unless a write is in flight.
  void WriteNext();

  Engine* const engine_;
  OpenCalls* const open_;
  const uint64_t connection_;
  const CallHandle call_;
  std::shared_ptr<AttachCall> self_;
  std::string group_;  // the reading side's own
  grpc::ByteBuffer in_;
  grpc::ByteBuffer out_;

  Mutex mutex_;
  bool hello_seen_ GUARDED_BY(mutex_) = false;
  size_t max_outbox_ GUARDED_BY(mutex_) = 0;
  std::deque<Outgoing> outbox_ GUARDED_BY(mutex_);
  bool writing_ GUARDED_BY(mutex_) = false;
  bool ended_ GUARDED_BY(mutex_) = false;  // Finish was called
  std::optional<absl::Status> end_ GUARDED_BY(mutex_);
};

}  // namespace pergola
