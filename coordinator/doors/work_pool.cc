#include "coordinator/doors/work_pool.h"

#include <pthread.h>

#include <utility>

namespace pergola {

WorkPool::WorkPool(WorkPoolOptions options) : options_(std::move(options)) {
  for (size_t i = 0; i < options_.threads; ++i) {
    threads_.emplace_back([this] { Loop(); });
    pthread_setname_np(threads_.back().native_handle(), options_.name.substr(0, 15).c_str());
  }
}

WorkPool::~WorkPool() {
  Stop();
}

bool WorkPool::TryRun(size_t bytes, std::function<void()> job) {
  {
    MutexLock lock(mutex_);
    if (stopping_ || jobs_ >= options_.max_jobs) return false;
    const bool counted = options_.max_bytes > 0 && bytes_ > 0;
    if (counted && (bytes > options_.max_bytes || bytes_ > options_.max_bytes - bytes)) {
      return false;
    }
    ++jobs_;
    bytes_ += bytes;
    queue_.push_back({bytes, std::move(job)});
  }
  wake_.NotifyOne();
  return true;
}

void WorkPool::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.NotifyAll();
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void WorkPool::Loop() {
  while (true) {
    Job job;
    {
      MutexLock lock(mutex_);
      while (queue_.empty() && !stopping_) wake_.Wait(mutex_);
      if (queue_.empty()) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    job.run();
    job.run = nullptr;  // what the job owns goes before its bytes count as free
    MutexLock lock(mutex_);
    --jobs_;
    bytes_ -= job.bytes;
  }
}

}  // namespace pergola
