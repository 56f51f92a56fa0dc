// Ends a rank whose main thread waits longer than a peer can need: nothing is cancelled, so a stuck
// wait never returns by itself. Knows neither MPI nor gRPC; what happens then is the caller's
// function.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>

#include "base/mutex.h"
#include "worker/comm/wait_board.h"

namespace pergola {

struct WatchdogOptions {
  int64_t limit_ms = 120'000;  // a wait of this length is overdue
  int64_t poll_ms = 500;       // how often the watchdog looks
};

// "all-reduce 17, waiting for rank 2, 120003 ms": for messages.
std::string DescribeWait(const Wait& wait, int64_t waited_ms);

class Watchdog {
 public:
  // Called once, on the watchdog's thread, with the wait and the milliseconds it has lasted. In a
  // worker it reports and does not return.
  using OnOverdue = std::function<void(const Wait& wait, int64_t waited_ms)>;

  // `board` is borrowed and outlives the watchdog.
  Watchdog(const WaitBoard& board, const WatchdogOptions& options, OnOverdue on_overdue);
  ~Watchdog();

 private:
  void Run();

  const WaitBoard& board_;
  const WatchdogOptions options_;
  const OnOverdue on_overdue_;
  Mutex mutex_;
  CondVar wake_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace pergola
