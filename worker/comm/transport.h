// Point-to-point messages between ranks of a group: plans to stage leaders, activations between
// stages, sampled ids back to stage 0. Messages of one (from, to, tag) arrive in order. Main thread
// only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pergola {

enum class Tag : int { kPlan = 1, kHidden = 2, kTokens = 3 };

class Transport {
 public:
  virtual ~Transport() = default;
  // Copies the bytes into a send buffer of its own and returns; blocks only when kMaxSendsInFlight
  // sends to `to` are incomplete.
  virtual absl::Status Send(int to, Tag tag, const void* data, int64_t bytes) = 0;
  // Waits for the next message of (from, tag) and replaces `out` by it. `idle`: the wait may be the
  // usual state, so it backs off to sleeps of 2 ms. The watchdog bounds it either way.
  virtual absl::Status Receive(int from, Tag tag, std::vector<uint8_t>* out, bool idle) = 0;
  // Whether a message of (from, tag) waits. Also moves sends on.
  virtual bool Probe(int from, Tag tag) = 0;
  // Waits until every send has left (bounded by the watchdog); called before the main thread blocks
  // elsewhere.
  virtual absl::Status Flush() = 0;
};

}  // namespace pergola
