#include "coordinator/metrics/status_snapshots.h"

#include <utility>

namespace pergola {

StatusSnapshots::StatusSnapshots(std::function<void(Done)> ask, std::function<TimeUs()> now)
    : ask_(std::move(ask)), now_(std::move(now)) {}

void StatusSnapshots::Get(std::function<void(Snapshot)> done) {
  Snapshot known;
  bool ask = false;
  {
    MutexLock lock(mutex_);
    if (last_ != nullptr && now_() - taken_ < kSnapshotAgeUs) {
      known = last_;
    } else if (waiting_.size() < kMaxWaiting) {
      ask = waiting_.empty();
      waiting_.push_back(std::move(done));
      done = nullptr;
    }
  }
  if (done != nullptr) return done(std::move(known));
  if (!ask) return;
  // The answer may come when nobody else holds this any more.
  ask_([self = shared_from_this()](v1::StatusResponse status) {
    self->Answered(std::move(status));
  });
}

void StatusSnapshots::Answered(v1::StatusResponse status) {
  const auto snapshot = std::make_shared<const v1::StatusResponse>(std::move(status));
  std::vector<std::function<void(Snapshot)>> waiting;
  {
    MutexLock lock(mutex_);
    last_ = snapshot;
    taken_ = now_();
    waiting.swap(waiting_);
  }
  for (const auto& done : waiting) done(snapshot);
}

}  // namespace pergola
