#include "worker/comm/watchdog.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace pergola {

std::string DescribeWait(const Wait& wait, int64_t waited_ms) {
  const std::string peer =
      wait.peer < 0 ? std::string() : absl::StrCat(", waiting for rank ", wait.peer);
  return absl::StrCat(wait.operation, " ", wait.sequence, peer, ", for ", waited_ms, " ms");
}

Watchdog::Watchdog(const WaitBoard& board, const WatchdogOptions& options, OnOverdue on_overdue)
    : board_(board), options_(options), on_overdue_(std::move(on_overdue)) {
  thread_ = std::thread([this] { Run(); });
}

Watchdog::~Watchdog() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.NotifyAll();
  thread_.join();
}

void Watchdog::Run() {
  while (true) {
    const auto next =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(options_.poll_ms);
    {
      MutexLock lock(mutex_);
      while (!stopping_ && wake_.WaitUntil(mutex_, next)) {
      }
      if (stopping_) return;
    }
    Wait wait;
    if (!board_.Read(&wait)) continue;
    const int64_t waited_ms = (board_.NowMicroseconds() - wait.since_us) / 1000;
    if (waited_ms < options_.limit_ms) continue;
    on_overdue_(wait, waited_ms);
    return;
  }
}

}  // namespace pergola
