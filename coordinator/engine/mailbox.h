// From the engine to one door call: tokens and text coalesce until the reader takes them, then
// exactly one end. Bounded: the engine plans nothing for a sequence whose mailbox is full, so that
// only the tokens of plans in flight come on top. One writer (engine thread), one reader (the
// call's reactor).
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

// A mailbox with so much in it is full. A second of a fast stream; what 4096 slow readers hold
// together is 1 GiB.
inline constexpr size_t kMailboxTokens = 1024;
inline constexpr size_t kMailboxBytes = 256 << 10;

class Mailbox {
 public:
  struct Bounds {
    size_t tokens = kMailboxTokens;
    size_t bytes = kMailboxBytes;  // of ids, text and log-probabilities
  };
  // What gathered since the last Take.
  struct Delivery {
    std::vector<int32_t> ids;
    std::string text;
    std::vector<v1::Logprobs> logprobs;         // one per id, if the request asks for them
    std::vector<v1::Logprobs> prompt_logprobs;  // of the prompt ids after those of the last Take
    std::optional<v1::StreamInfo>
        info;  // set once, with the first delivery (prompt ids are added by the door)
    v1::Continuity continuity = v1::CONTINUITY_UNSPECIFIED;
    bool ended = false;
    absl::Status status;               // if ended
    std::optional<v1::Finish> finish;  // if ended and status is OK
    bool empty() const {
      return ids.empty() && text.empty() && prompt_logprobs.empty() && !info && !ended;
    }
  };

  // `notify` runs on the engine thread, outside the lock, whenever an empty mailbox gets something.
  // It must not block.
  explicit Mailbox(std::function<void()> notify) : Mailbox(std::move(notify), Bounds()) {}
  Mailbox(std::function<void()> notify, Bounds bounds)
      : notify_(std::move(notify)), bounds_(bounds) {}

  // Writer. Nothing may follow an ended delivery (CHECK). Always takes it; true: the mailbox is
  // full now.
  bool Put(Delivery delivery);
  // Writer. Whether the reader has not yet taken what made it full.
  bool full() const;
  // Reader. Returns what gathered, possibly nothing.
  Delivery Take();

  // Of ids, text and log-probabilities.
  static size_t BytesOf(const Delivery& delivery);

 private:
  bool FullLocked() const REQUIRES(mutex_) {
    return pending_.ids.size() >= bounds_.tokens || bytes_ >= bounds_.bytes;
  }

  const std::function<void()> notify_;
  const Bounds bounds_;
  mutable Mutex mutex_;
  Delivery pending_ GUARDED_BY(mutex_);
  size_t bytes_ GUARDED_BY(mutex_) = 0;  // of pending_
  bool ended_ GUARDED_BY(mutex_) = false;
};

}  // namespace pergola
