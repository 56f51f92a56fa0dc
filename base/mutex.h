// A thin annotated wrapper of std::mutex and std::condition_variable_any (absl::Mutex of Debian is
// invisible to TSan). Only queues and mailboxes hold one; nothing is called out under a lock.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define PERGOLA_ANNOTATION(x) __attribute__((x))
#else
#define PERGOLA_ANNOTATION(x)
#endif
// Debian's abseil defines two of these names in an internal header; the meaning is the same.
#undef GUARDED_BY
#undef REQUIRES
#undef EXCLUDES
#define GUARDED_BY(x) PERGOLA_ANNOTATION(guarded_by(x))
#define REQUIRES(x) PERGOLA_ANNOTATION(requires_capability(x))
#define EXCLUDES(x) PERGOLA_ANNOTATION(locks_excluded(x))

namespace pergola {

class PERGOLA_ANNOTATION(capability("mutex")) Mutex {
 public:
  void lock() PERGOLA_ANNOTATION(acquire_capability()) { mutex_.lock(); }
  void unlock() PERGOLA_ANNOTATION(release_capability()) { mutex_.unlock(); }

 private:
  friend class CondVar;
  std::mutex mutex_;
};

class PERGOLA_ANNOTATION(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) PERGOLA_ANNOTATION(acquire_capability(mutex)) : mutex_(mutex) {
    mutex_.lock();
  }
  ~MutexLock() PERGOLA_ANNOTATION(release_capability()) { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// Waits atomically release and reacquire the mutex, which the caller holds. Wake-ups may be
// spurious: loop on the condition.
class CondVar {
 public:
  void Wait(Mutex& mutex) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    cv_.wait(lock);
    lock.release();
  }
  // Returns false if the time is over.
  bool WaitUntil(Mutex& mutex, std::chrono::steady_clock::time_point deadline) REQUIRES(mutex) {
    std::unique_lock<std::mutex> lock(mutex.mutex_, std::adopt_lock);
    const bool signalled = cv_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return signalled;
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace pergola
