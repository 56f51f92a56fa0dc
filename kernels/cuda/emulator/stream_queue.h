// Work of one stream that waits: to be waited for (emulator.h, SetDeferred), or behind work that
// waits for other ranks. Filled by one thread at a time, as the streams of a rank are. Work that
// waits for other ranks goes on by itself, as a device's does, on a thread of the queue: its host
// may wait for something else meanwhile.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "kernels/cuda/emulator/stream.h"

namespace pergola::emulator {

class StreamQueue {
 public:
  StreamQueue() = default;
  ~StreamQueue() { Stop(); }
  StreamQueue(const StreamQueue&) = delete;
  StreamQueue& operator=(const StreamQueue&) = delete;

  // Returns the work's number: 1, 2, ... `by_itself`: it need not be asked for.
  int64_t Push(Work work, bool by_itself) {
    MutexLock lock(mutex_);
    waiting_.push_back(std::move(work));
    if (by_itself) {
      by_itself_ = true;
      if (!thread_.joinable() && !stopping_) thread_ = std::thread([this] { Run(); });
      wake_.NotifyOne();
    }
    return done_ + static_cast<int64_t>(waiting_.size());
  }
  // Neither of these takes the lock: work of another queue, under that one's lock, asks.
  bool Done(int64_t number) const { return done_ >= number; }
  bool GoesOnByItself() const { return by_itself_; }
  bool Empty() {
    MutexLock lock(mutex_);
    return waiting_.empty();
  }
  // Does one piece of work, if there is any; false if it waits for another rank.
  bool RunOne() {
    MutexLock lock(mutex_);
    return waiting_.empty() || RunFirst();
  }
  // As much as can be done without waiting for another rank, up to and with work `number`.
  bool TryThrough(int64_t number) {
    while (!Done(number) && !Empty()) {
      if (!RunOne()) return false;
    }
    return true;
  }
  void RunThrough(int64_t number) {
    while (!TryThrough(number)) std::this_thread::sleep_for(kPause);
  }
  bool TryAll() { return TryThrough(Last()); }
  void RunAll() { RunThrough(Last()); }

  // Nothing is done by itself any more.
  void Stop() {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
      wake_.NotifyOne();
    }
    if (thread_.joinable()) thread_.join();
  }

 private:
  static constexpr std::chrono::microseconds kPause{20};

  int64_t Last() {
    MutexLock lock(mutex_);
    return done_ + static_cast<int64_t>(waiting_.size());
  }
  bool RunFirst() REQUIRES(mutex_) {
    if (!waiting_.front().Advance()) return false;
    waiting_.pop_front();
    ++done_;
    return true;
  }
  void Run() {
    while (true) {
      {
        MutexLock lock(mutex_);
        while (!stopping_ && !(by_itself_ && !waiting_.empty())) wake_.Wait(mutex_);
        if (stopping_) return;
        if (RunFirst()) continue;
      }
      std::this_thread::sleep_for(kPause);
    }
  }

  Mutex mutex_;
  CondVar wake_;
  std::deque<Work> waiting_ GUARDED_BY(mutex_);
  std::atomic<int64_t> done_{0};
  std::atomic<bool> by_itself_{false};
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
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
