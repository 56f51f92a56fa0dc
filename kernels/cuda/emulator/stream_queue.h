// Work of one stream that waits to be waited for (emulator.h, SetDeferred). Used by one thread at a
// time, as the streams of a rank are.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace pergola::emulator {

class StreamQueue {
 public:
  // Returns the work's number: 1, 2, ...
  int64_t Push(std::function<void()> work) {
    waiting_.push_back(std::move(work));
    return done_ + static_cast<int64_t>(waiting_.size());
  }
  bool Done(int64_t number) const { return done_ >= number; }
  bool Empty() const { return waiting_.empty(); }
  void RunOne() {
    const std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    work();
    ++done_;
  }
  // Runs all up to and with work `number`.
  void RunThrough(int64_t number) {
    while (!Done(number) && !Empty()) RunOne();
  }
  void RunAll() {
    while (!Empty()) RunOne();
  }

 private:
  std::deque<std::function<void()>> waiting_;
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
