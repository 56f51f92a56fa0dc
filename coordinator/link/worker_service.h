// The internal service pergola.v1.Worker behind the internal door: names connections and hands
// messages to the engine.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "coordinator/engine/engine.h"
#include "coordinator/link/internal_door.h"
#include "coordinator/link/open_calls.h"
#include "coordinator/link/results_call.h"

namespace pergola {

class WorkerService {
 public:
  // Adds its methods to `door`. Both borrowed; the engine outlives the service and its calls, the
  // service its calls.
  WorkerService(Engine* engine, InternalDoor* door);

  // Ends every Attach and Results stream with `status`, those to come too.
  void EndStreams(const absl::Status& status) { open_.EndAll(status); }

 private:
  // One Results stream per group name: a newer one ends the older.
  void Named(const std::string& group, const std::shared_ptr<ResultsCall>& call);

  Engine* const engine_;
  std::atomic<uint64_t> next_connection_{1};
  OpenCalls open_;
  Mutex mutex_;
  std::map<std::string, std::weak_ptr<ResultsCall>> results_ GUARDED_BY(mutex_);
};

}  // namespace pergola
