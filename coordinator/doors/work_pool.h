// A fixed number of threads over one bounded queue: text work (parsing, tokenising) that must not
// run in a reactor callback, and the delivery of tokens that must not run on the engine thread.
// Work that does not fit is refused at once, so a caller never waits. Not for work that blocks.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace pergola {

struct WorkPoolOptions {
  std::string name;  // of the threads, at most 15 characters
  size_t threads = 1;
  size_t max_jobs = 1024;  // waiting or running
  size_t max_bytes = 0;    // reserved by jobs waiting or running; 0: not counted
};

class WorkPool {
 public:
  explicit WorkPool(WorkPoolOptions options);
  ~WorkPool();  // Stop()
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  // Queues `job`, which holds `bytes` of memory until it has run. False, and `job` is dropped, if
  // the bound on jobs or bytes is reached or the pool has stopped. A single job larger than
  // max_bytes runs when it is alone.
  bool TryRun(size_t bytes, std::function<void()> job);

  // Runs what is queued, refuses the rest and joins the threads. Idempotent; not from a job.
  void Stop();

 private:
  struct Job {
    size_t bytes;
    std::function<void()> run;
  };
  void Loop();

  const WorkPoolOptions options_;
  Mutex mutex_;
  CondVar wake_;
  std::deque<Job> queue_ GUARDED_BY(mutex_);
  size_t jobs_ GUARDED_BY(mutex_) = 0;
  size_t bytes_ GUARDED_BY(mutex_) = 0;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace pergola
