#include "kernels/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "base/check.h"

namespace pergola {
namespace {

// About 50 microseconds of pause instructions (40 to 140 cycles each): longer than the gap between
// two ops of a layer, shorter than anybody notices on an idle machine.
constexpr int kSpins = 1000;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int CoresAvailable() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set);
}

void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  CPU_SET(cpu, &set);
  // A refusal (CPU absent or not ours) costs speed, not correctness.
  (void)pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

}  // namespace

ThreadPool::ThreadPool(int threads, int first_cpu)
    : threads_(threads),
      may_spin_(threads > 1 && threads <= CoresAvailable()),
      scratch_(int64_t{threads} * kScratchBytes) {
  PERGOLA_CHECK(threads >= 1);
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this, i, first_cpu] { Work(i, first_cpu < 0 ? -1 : first_cpu + i); });
  }
  if (first_cpu >= 0) PinTo(first_cpu);
}

ThreadPool::~ThreadPool() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  {
    MutexLock lock(mutex_);
    job_posted_.NotifyAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

int64_t ThreadPool::PartsFor(int64_t count, int64_t grain) const {
  return std::min<int64_t>(threads_, (count + grain - 1) / std::max<int64_t>(grain, 1));
}

void ThreadPool::RunErased(ErasedBody body, const void* context) {
  if (threads_ == 1) {
    body(context, 0);
    return;
  }
  body_ = body;
  context_ = context;
  unfinished_.store(threads_ - 1, std::memory_order_relaxed);
  // Sequentially consistent with the sleeper's increment and second look: either it sees the new
  // epoch or we see it.
  epoch_.fetch_add(1);
  if (sleepers_.load() > 0) {
    MutexLock lock(mutex_);
    job_posted_.NotifyAll();
  }
  body(context, 0);
  AwaitWorkers();
}

void ThreadPool::AwaitWorkers() {
  for (int i = 0; may_spin_ && i < kSpins; ++i) {
    if (unfinished_.load(std::memory_order_acquire) == 0) return;
    Pause();
  }
  if (unfinished_.load(std::memory_order_acquire) == 0) return;
  MutexLock lock(mutex_);
  caller_sleeps_.store(true);
  while (unfinished_.load() != 0) job_done_.Wait(mutex_);
  caller_sleeps_.store(false);
}

bool ThreadPool::AwaitJob(uint64_t seen) {
  for (int i = 0; may_spin_ && i < kSpins; ++i) {
    if (epoch_.load(std::memory_order_acquire) != seen) return !stopping_.load();
    Pause();
  }
  MutexLock lock(mutex_);
  sleepers_.fetch_add(1);
  while (epoch_.load() == seen) job_posted_.Wait(mutex_);
  sleepers_.fetch_sub(1);
  return !stopping_.load();
}

void ThreadPool::Work(int thread, int cpu) {
  PinTo(cpu);
  // Jobs come one at a time and each waits for every worker, so the epochs a worker sees have no
  // gaps.
  for (uint64_t seen = 0; AwaitJob(seen); ++seen) {
    body_(context_, thread);
    if (unfinished_.fetch_sub(1) == 1 && caller_sleeps_.load()) {
      MutexLock lock(mutex_);
      job_done_.NotifyOne();
    }
  }
}

}  // namespace pergola
