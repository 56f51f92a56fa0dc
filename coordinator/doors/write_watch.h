// Notices that an operation on a call's stream does not complete: the peer takes nothing of what
// was written. One timer per call, which fires about once per timeout however many operations begin
// and end meanwhile. Not for what happens then (generate_call.h, batch_call.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "coordinator/engine/time.h"
#include "grpcpp/alarm.h"

namespace pergola {

class WriteWatch : public std::enable_shared_from_this<WriteWatch> {
 public:
  using Overdue = std::function<void(const absl::Status&)>;

  // `on_overdue` runs at most once, on a gRPC thread, with RESOURCE_EXHAUSTED naming the limit; it
  // must not keep the watch alive. Make it with std::make_shared.
  WriteWatch(int64_t timeout_ms, Overdue on_overdue);

  // At most one operation is in flight.
  void Begin();
  void End();

 private:
  void Arm(TimeUs at, TimeUs now) REQUIRES(mutex_);
  void OnAlarm();

  const int64_t timeout_ms_;
  const Overdue on_overdue_;
  Mutex mutex_;
  TimeUs begun_ GUARDED_BY(mutex_) = kNever;  // of the operation in flight; kNever: none
  std::unique_ptr<grpc::Alarm> alarm_ GUARDED_BY(mutex_);  // from the first operation on
};

}  // namespace pergola
