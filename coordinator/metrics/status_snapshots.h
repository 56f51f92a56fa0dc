// Pictures of the engine for many who ask at once: the engine is asked at most once per
// kSnapshotAgeUs and never again before it has answered, whatever the scrapers do.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "coordinator/engine/time.h"
#include "pergola/v1/admin.pb.h"

namespace pergola {

class StatusSnapshots : public std::enable_shared_from_this<StatusSnapshots> {
 public:
  // Scrapers come each second at the most often; two within this may see the same numbers.
  static constexpr TimeUs kSnapshotAgeUs = 100'000;
  static constexpr size_t kMaxWaiting = 256;

  using Snapshot = std::shared_ptr<const v1::StatusResponse>;
  using Done = std::function<void(v1::StatusResponse)>;
  // `ask` calls its argument once, on any thread; `now` is a clock.
  explicit StatusSnapshots(std::function<void(Done)> ask,
                           std::function<TimeUs()> now = &SteadyNowUs);

  // `done` gets a picture at most kSnapshotAgeUs old, at once or on the engine thread, or null at
  // once when kMaxWaiting wait already. It must not block.
  void Get(std::function<void(Snapshot)> done);

 private:
  void Answered(v1::StatusResponse status);

  const std::function<void(Done)> ask_;
  const std::function<TimeUs()> now_;
  Mutex mutex_;
  Snapshot last_ GUARDED_BY(mutex_);
  TimeUs taken_ GUARDED_BY(mutex_) = 0;
  std::vector<std::function<void(Snapshot)>> waiting_ GUARDED_BY(mutex_);
};

}  // namespace pergola
