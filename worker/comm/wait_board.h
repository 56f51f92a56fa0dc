// What a rank's main thread waits for right now, published for the watchdog thread. Waits nest: a
// collective inside a step hides the step until it ends.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace pergola {

// One wait. `since_us` is the board's clock.
struct Wait {
  const char* operation = nullptr;  // a string literal; nullptr: nothing
  uint64_t sequence = 0;            // which plan, or which collective since the start
  int peer = -1;  // rank that is waited for, in the terms of the operation; -1: several or none
  int64_t since_us = 0;
};

// Begin and End: main thread only. Read: any thread.
class WaitBoard {
 public:
  using Clock = std::function<int64_t()>;
  static int64_t SteadyMicroseconds() {
    return std::chrono::duration_cast<std::chrono::microseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  explicit WaitBoard(Clock now_us = SteadyMicroseconds) : now_us_(std::move(now_us)) {}

  // Publishes a wait that begins now and returns what it hides, for Restore.
  Wait Begin(const char* operation, uint64_t sequence, int peer) {
    const Wait hidden = current_;
    Publish({operation, sequence, peer, now_us_()});
    return hidden;
  }
  // The hidden wait counts on from its own beginning.
  void Restore(const Wait& hidden) { Publish(hidden); }

  // False if the main thread waits for nothing or changes the board at this moment.
  bool Read(Wait* wait) const {
    const uint64_t before = version_.load(std::memory_order_acquire);
    if (before % 2 != 0) return false;
    wait->operation = operation_.load(std::memory_order_acquire);
    wait->sequence = sequence_.load(std::memory_order_acquire);
    wait->peer = peer_.load(std::memory_order_acquire);
    wait->since_us = since_us_.load(std::memory_order_acquire);
    return version_.load(std::memory_order_acquire) == before && wait->operation != nullptr;
  }
  int64_t NowMicroseconds() const { return now_us_(); }

 private:
  // An odd version says that the fields are being written; every field is an atomic of its own, so
  // a reader that crosses a writer reads a mixture, never garbage, and the version tells.
  void Publish(const Wait& wait) {
    current_ = wait;
    version_.fetch_add(1, std::memory_order_acq_rel);
    operation_.store(wait.operation, std::memory_order_release);
    sequence_.store(wait.sequence, std::memory_order_release);
    peer_.store(wait.peer, std::memory_order_release);
    since_us_.store(wait.since_us, std::memory_order_release);
    version_.fetch_add(1, std::memory_order_acq_rel);
  }

  const Clock now_us_;
  Wait current_;
  std::atomic<uint64_t> version_{0};
  std::atomic<const char*> operation_{nullptr};
  std::atomic<uint64_t> sequence_{0};
  std::atomic<int> peer_{-1};
  std::atomic<int64_t> since_us_{0};
};

// Publishes a wait for as long as it lives.
class ScopedWait {
 public:
  ScopedWait(WaitBoard& board, const char* operation, uint64_t sequence, int peer)
      : board_(board), hidden_(board.Begin(operation, sequence, peer)) {}
  ~ScopedWait() { board_.Restore(hidden_); }
  ScopedWait(const ScopedWait&) = delete;
  ScopedWait& operator=(const ScopedWait&) = delete;

 private:
  WaitBoard& board_;
  const Wait hidden_;
};

}  // namespace pergola
