// The streams of workers that are open, so that the end of the coordinator can end them: nothing
// else would, as a worker keeps them open for as long as it lives.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "absl/status/status.h"
#include "base/mutex.h"

namespace pergola {

class OpenCalls {
 public:
  using Close = std::function<void(const absl::Status&)>;

  // `close` must not keep the call alive. After EndAll it runs at once.
  void Add(uint64_t connection, const Close& close) {
    absl::Status ended;
    {
      MutexLock lock(mutex_);
      ended = ended_;
      if (ended.ok()) calls_[connection] = close;
    }
    if (!ended.ok()) close(ended);
  }

  void Remove(uint64_t connection) {
    MutexLock lock(mutex_);
    calls_.erase(connection);
  }

  // Ends every call with `status`, those to come too.
  void EndAll(const absl::Status& status) {
    std::map<uint64_t, Close> calls;
    {
      MutexLock lock(mutex_);
      ended_ = status;
      calls.swap(calls_);
    }
    for (const auto& [connection, close] : calls) close(status);
  }

 private:
  Mutex mutex_;
  absl::Status ended_ GUARDED_BY(mutex_);  // OK: not yet
  std::map<uint64_t, Close> calls_ GUARDED_BY(mutex_);
};

}  // namespace pergola
