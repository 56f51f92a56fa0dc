// Work of one stream that waits: to be waited for (emulator.h, SetDeferred), or behind work that
// waits for other ranks. Used by one thread at a time, as the streams of a rank are.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/emulator/stream.h"

namespace pergola::emulator {

class StreamQueue {
 public:
  // Returns the work's number: 1, 2, ...
  int64_t Push(Work work) {
    waiting_.push_back(std::move(work));
    return done_ + static_cast<int64_t>(waiting_.size());
  }
  bool Done(int64_t number) const { return done_ >= number; }
  bool Empty() const { return waiting_.empty(); }
  // False if it waits for another rank.
  bool RunOne() {
    if (!waiting_.front().Advance()) return false;
    waiting_.pop_front();
    ++done_;
    return true;
  }
  // As much as can be done without waiting for another rank, up to and with work `number`.
  bool TryThrough(int64_t number) {
    while (!Done(number) && !Empty() && RunOne()) {
    }
    return Done(number) || Empty();
  }
  void RunThrough(int64_t number) {
    while (!TryThrough(number)) std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  bool TryAll() { return TryThrough(Last()); }
  void RunAll() { RunThrough(Last()); }

 private:
  int64_t Last() const { return done_ + static_cast<int64_t>(waiting_.size()); }

  std::deque<Work> waiting_;
  int64_t done_ = 0;
};

// The queues of the streams that a thread has made.
class ThreadQueues {
 public:
  static ThreadQueues& Own() {
    static thread_local ThreadQueues queues;
    return queues;
  }
  // `blocking`: the legacy stream waits for it.
  std::shared_ptr<StreamQueue> Make(bool blocking) {
    auto queue = std::make_shared<StreamQueue>();
    queues_.push_back({queue, blocking});
    return queue;
  }
  void RunAll(bool blocking_only) {
    for (const Entry& entry : queues_) {
      const auto queue = entry.queue.lock();
      if (queue != nullptr && (entry.blocking || !blocking_only)) queue->RunAll();
    }
  }

 private:
  struct Entry {
    std::weak_ptr<StreamQueue> queue;
    bool blocking;
  };
  std::vector<Entry> queues_;
};

}  // namespace pergola::emulator
