// From the engine to one door call: tokens and text coalesce until the reader takes them, then
// exactly one end. Bounded by what one sequence may produce (max_new_tokens). One writer (engine
// thread), one reader (the call's reactor).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "pergola/v1/generation.pb.h"

namespace pergola {

class Mailbox {
 public:
  // What gathered since the last Take.
  struct Delivery {
    std::vector<int32_t> ids;
    std::string text;
    std::optional<v1::StreamInfo>
        info;  // set once, with the first delivery (prompt ids are added by the door)
    v1::Continuity continuity = v1::CONTINUITY_UNSPECIFIED;
    bool ended = false;
    absl::Status status;               // if ended
    std::optional<v1::Finish> finish;  // if ended and status is OK
    bool empty() const { return ids.empty() && text.empty() && !info && !ended; }
  };

  // `notify` runs on the engine thread, outside the lock, whenever an empty mailbox gets something.
  // It must not block.
  explicit Mailbox(std::function<void()> notify) : notify_(std::move(notify)) {}

  // Writer. Nothing may follow an ended delivery (CHECK).
  void Put(Delivery delivery);
  // Reader. Returns what gathered, possibly nothing.
  Delivery Take();

 private:
  const std::function<void()> notify_;
  Mutex mutex_;
  Delivery pending_ GUARDED_BY(mutex_);
  bool ended_ GUARDED_BY(mutex_) = false;
};

}  // namespace pergola
