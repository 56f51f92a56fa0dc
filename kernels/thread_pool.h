// The fork-join pool behind a CPU stream: one per rank, the caller works too. Not a task queue: one
// job at a time, from the owning thread only. Idle threads sleep; they spin briefly after a job
// only where every thread has a core.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "kernels/tensor.h"

namespace pergola {

class ThreadPool {
 public:
  // Scratch of each thread: room for a row group of Matmul or for a tile of attention. Fixed, so
  // that nothing grows with load (DESIGN I7); pages are touched on first use only.
  static constexpr int64_t kScratchBytes = int64_t{2} << 20;

  // `threads` counts the caller. With `first_cpu` >= 0 thread i is pinned to CPU first_cpu + i;
  // where that is refused the thread stays unpinned.
  ThreadPool(int threads, int first_cpu);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls body(thread) once for each thread 0 .. threads() - 1, thread 0 being the caller; returns
  // when all are done. What the bodies wrote is visible to the caller afterwards.
  template <typename Body>
  void Run(const Body& body) {
    RunErased([](const void* context, int thread) { (*static_cast<const Body*>(context))(thread); },
              &body);
  }

  // Cuts [0, count) into one contiguous range per thread and calls body(begin, end) for those not
  // empty. A range has at least `grain` items (except the last), so small jobs stay on fewer
  // threads.
  template <typename Body>
  void ParallelFor(int64_t count, int64_t grain, const Body& body) {
    const int64_t parts = PartsFor(count, grain);
    if (parts <= 1) {
      if (count > 0) body(int64_t{0}, count);
      return;
    }
    Run([&](int thread) {
      if (thread >= parts) return;
      const int64_t begin = count * thread / parts;
      const int64_t end = count * (thread + 1) / parts;
      if (begin < end) body(begin, end);
    });
  }

  // 64-byte aligned, kScratchBytes long, for the body that runs as `thread`.
  uint8_t* Scratch(int thread) { return scratch_.data() + thread * kScratchBytes; }

 private:
  using ErasedBody = void (*)(const void* context, int thread);

  int64_t PartsFor(int64_t count, int64_t grain) const;
  void RunErased(ErasedBody body, const void* context);
  void Work(int thread, int cpu);
  bool AwaitJob(uint64_t seen);
  void AwaitWorkers();

  const int threads_;
  const bool may_spin_;
  HostBuffer scratch_;

  // The job; written by the caller before `epoch_` grows, read by workers after they saw it grow.
  ErasedBody body_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> unfinished_{0};
  std::atomic<bool> stopping_{false};

  Mutex mutex_;
  CondVar job_posted_;
  CondVar job_done_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> caller_sleeps_{false};

  std::vector<std::thread> workers_;
};

}  // namespace pergola
