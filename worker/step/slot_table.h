// What a rank knows of the running sequences: one slot each, as the plans have told it. The same on
// every rank. Owns no decision: it checks plans and remembers them.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "pergola/v1/worker.pb.h"
#include "worker/model/decoder.h"

namespace pergola {

struct SlotLimits {
  int64_t slot_count = 0;
  int64_t block_count = 0;
  int64_t block_tokens = 0;
  int64_t step_tokens = 0;
  int64_t context_length = 0;
  int64_t vocabulary = 0;

  // Blocks that a sequence of the full context takes.
  int64_t blocks_per_sequence() const { return (context_length + block_tokens - 1) / block_tokens; }
};

// How a sequence draws its tokens: the plan's SlotStart.
struct SlotSampling {
  float temperature = 0;
  uint32_t top_k = 0;
  float top_p = 1;
  uint64_t seed = 0;
  uint32_t index = 0;
};

class SlotTable {
 public:
  // Allocates all it will ever need.
  explicit SlotTable(const SlotLimits& limits);

  const SlotLimits& limits() const { return limits_; }
  // What the constructor allocated.
  int64_t bytes() const;
  void LimitBlocks(int64_t block_count);

  // INVALID_ARGUMENT naming field, value and limit if the plan cannot be executed on the slots as
  // they are. Changes nothing.
  absl::Status Validate(const v1::StepPlan& plan) const;

  // Takes over starts, block tables and positions of a validated plan. The rows returned are valid
  // until the next call.
  StepRows Apply(const v1::StepPlan& plan);

  const SlotSampling& sampling(int64_t slot) const { return slots_[slot].sampling; }
  // Positions computed so far, the last applied plan's included.
  int64_t computed(int64_t slot) const { return slots_[slot].computed; }

  // Forgets every sequence.
  void Clear();

 private:
  struct Slot {
    bool started = false;
    int64_t computed = 0;      // positions
    int64_t table_length = 0;  // blocks
    SlotSampling sampling;
  };

  absl::Status ValidateStarts(const v1::StepPlan& plan, std::vector<bool>* started) const;
  absl::Status ValidateEntry(const v1::StepPlan& plan, const v1::Entry& entry,
                             const Slot& slot) const;
  absl::Status ValidateTokens(const v1::StepPlan& plan, const v1::Entry& entry) const;
  absl::Status ValidateTable(const v1::Entry& entry, const Slot& slot) const;
  absl::Status ValidateWants(const v1::Entry& entry) const;

  SlotLimits limits_;
  const int64_t table_stride_;  // blocks_per_sequence()
  std::vector<Slot> slots_;
  std::vector<int32_t> tables_;        // [slot_count, table_stride_] block ids
  std::vector<int32_t> positions_;     // [step_tokens]
  std::vector<int64_t> slot_of_row_;   // [step_tokens]
  std::vector<int32_t> table_of_row_;  // [step_tokens]
};

// Token rows of an entry.
int64_t EntryRows(const v1::Entry& entry);

}  // namespace pergola
