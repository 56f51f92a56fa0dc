// What a rank allocates, planned before it is allocated, so that a model that does not fit is
// refused with numbers and the plan that is printed adds up (DESIGN I7).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pergola {

// Bytes the operating system says a new process could use (MemAvailable of /proc/meminfo); 0: it
// does not say.
int64_t AvailableMemory();

// KV of one rank.
struct KvRequest {
  int64_t slot_count = 0;
  int64_t context_length = 0;
  int64_t block_tokens = 0;
  int64_t block_bytes = 0;  // of one block, K and V, in all layers of the rank
  int64_t kv_bytes = 0;     // 0: choose
  int64_t block_count = 0;  // 0: from kv_bytes
};

// How many blocks to hold. INVALID_ARGUMENT with the numbers if they do not hold one sequence of
// the full context, or are more than an int32 counts.
absl::StatusOr<int64_t> PlanBlockCount(const KvRequest& request);

struct MemoryPlan {
  int64_t weight_bytes = 0;
  int64_t kv_bytes = 0;
  int64_t workspace_bytes = 0;  // decoder buffers, rope table, block tables
  int64_t logit_bytes = 0;
  int64_t total() const { return weight_bytes + kv_bytes + workspace_bytes + logit_bytes; }
  // "weights 95.1 MiB + KV 720.0 MiB + workspaces 10.2 MiB + logits 12.0 MiB = 837.3 MiB"
  std::string ToString() const;
};

// RESOURCE_EXHAUSTED with the plan if it takes more than `available` bytes (0: unknown, never
// refused).
absl::Status CheckFits(const MemoryPlan& plan, int64_t available);

}  // namespace pergola
