// Ends a call from outside of its reactor, with a status, even while a write waits for a peer that
// does not read. May outlive the call.
#pragma once

#include "absl/status/status.h"
#include "grpcpp/server_context.h"

struct grpc_call;

namespace pergola {

class CallHandle {
 public:
  explicit CallHandle(grpc::CallbackServerContext* context);
  ~CallHandle();
  CallHandle(const CallHandle&) = delete;
  CallHandle& operator=(const CallHandle&) = delete;

  // Fails every operation in flight and resets the stream; a peer that still looks is told
  // `status`. No effect on a call that has ended. Any thread, but under no lock: gRPC may run
  // callbacks in it.
  void Cancel(const absl::Status& status) const;

 private:
  // A reference of our own: gRPC's context is gone when a call is done, which another thread may
  // see to at any moment.
  grpc_call* const call_;
};

}  // namespace pergola
