#include "coordinator/doors/write_watch.h"

#include <grpc/support/time.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/doors/grpc_bytes.h"

namespace pergola {

WriteWatch::WriteWatch(int64_t timeout_ms, Overdue on_overdue)
    : timeout_ms_(timeout_ms), on_overdue_(std::move(on_overdue)) {}

void WriteWatch::Begin() {
  const TimeUs now = NowUs();
  MutexLock lock(mutex_);
  begun_ = now;
  if (alarm_ == nullptr) Arm(now + timeout_ms_ * 1000, now);
}

void WriteWatch::End() {
  MutexLock lock(mutex_);
  begun_ = kNever;
}

void WriteWatch::Arm(TimeUs at, TimeUs now) {
  // An alarm of its own for each time: the one before may be running right now.
  alarm_ = std::make_unique<grpc::Alarm>();
  alarm_->Set(
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_micros(at - now, GPR_TIMESPAN)),
      [weak = weak_from_this()](bool ok) {
        if (!ok) return;  // the watch is gone
        if (const auto strong = weak.lock()) strong->OnAlarm();
      });
}

void WriteWatch::OnAlarm() {
  const TimeUs now = NowUs();
  const TimeUs timeout_us = timeout_ms_ * 1000;
  {
    MutexLock lock(mutex_);
    if (begun_ == kNever || begun_ + timeout_us > now) {
      Arm((begun_ == kNever ? now : begun_) + timeout_us, now);
      return;
    }
  }
  on_overdue_(absl::ResourceExhaustedError(
      absl::StrCat("the client took nothing of the stream for ", timeout_ms_,
                   " ms, the limit of --slow-reader-timeout-ms")));
}

}  // namespace pergola
