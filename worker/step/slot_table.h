// What a rank knows of the running sequences: one slot each, as the plans have told it. The same on
// every rank. Owns no decision: it checks plans and remembers them.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/sample.h"
#include "pergola/v1/worker.pb.h"
#include "worker/model/step_inputs.h"

namespace pergola {

struct SlotLimits {
  int64_t slot_count = 0;
  int64_t block_count = 0;
  int64_t block_tokens = 0;
  int64_t step_tokens = 0;
  int64_t context_length = 0;
  int64_t vocabulary = 0;
  // Whether this rank samples (last stage): only then are token histories, biases and suppressed
  // ids kept. What Validate says does not depend on it.
  bool samples = false;

  // Blocks that a sequence of the full context takes.
  int64_t blocks_per_sequence() const { return (context_length + block_tokens - 1) / block_tokens; }
};

// How a sequence draws its tokens: the plan's SlotStart, without its lists.
struct SlotSampling {
  float temperature = 0;
  uint32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float typical_p = 1;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint32_t no_repeat_ngram_size = 0;
  uint32_t min_new_tokens = 0;
  int64_t prompt_tokens = 0;
  uint64_t seed = 0;
  uint32_t index = 0;
  int64_t bias_count = 0;
  int64_t suppressed_count = 0;
  int logprobs = -1;  // most probable ids beside each sampled one; -1: no log-probabilities
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

  // Takes over starts, block tables, positions and, where this rank samples, histories of a
  // validated plan. `ids`: of all rows, every TokenRef resolved; may be empty where the rank does
  // not sample, and negative where Correct follows. The rows returned are valid until the next
  // call.
  StepRows Apply(const v1::StepPlan& plan, absl::Span<const int32_t> ids);

  // The ids of the plan applied last once more: some were not known then (TokenOfEntry of
  // kernels/decoder_ops.h).
  void Correct(const v1::StepPlan& plan, absl::Span<const int32_t> ids);

  // What the last Apply changed in the block tables.
  absl::Span<const TableChange> changes() const { return changes_; }

  const SlotSampling& sampling(int64_t slot) const { return slots_[slot].sampling; }
  // All that the choice of the token at `position` (at most computed(slot)) depends on, except
  // logits and mask. Points into this table: valid until the next Apply. Only where this rank
  // samples.
  SampleRow Row(int64_t slot, int64_t position) const;
  // Positions computed so far, the last applied plan's included.
  int64_t computed(int64_t slot) const { return slots_[slot].computed; }

  // Forgets every sequence.
  void Clear();

 private:
  struct Slot {
    bool started = false;
    bool looks_back = false;   // the history is kept
    int64_t computed = 0;      // positions
    int64_t table_length = 0;  // blocks
    SlotSampling sampling;
  };

  using Starts = std::vector<const v1::SlotStart*>;  // by slot; nullptr: not started

  absl::Status ValidateStarts(const v1::StepPlan& plan, Starts* starts) const;
  absl::Status ValidateStart(const v1::SlotStart& start) const;
  absl::Status ValidateHistory(const v1::SlotStart& start) const;
  absl::Status ValidateEntry(const v1::StepPlan& plan, const v1::Entry& entry,
                             const Slot& slot) const;
  absl::Status ValidateTokens(const v1::StepPlan& plan, const v1::Entry& entry) const;
  absl::Status ValidateTable(const v1::Entry& entry, const Slot& slot) const;
  absl::Status ValidateWants(const v1::Entry& entry) const;
  absl::Status ValidateTargets(const v1::Entry& entry) const;
  void Start(const v1::SlotStart& start);
  int32_t* HistoryOf(int64_t slot) { return &history_[slot * limits_.context_length]; }

  SlotLimits limits_;
  const int64_t table_stride_;  // blocks_per_sequence()
  std::vector<Slot> slots_;
  std::vector<int32_t> tables_;        // [slot_count, table_stride_] block ids
  std::vector<TableChange> changes_;   // at most one of each slot
  std::vector<int32_t> positions_;     // [step_tokens]
  std::vector<int64_t> slot_of_row_;   // [step_tokens]
  std::vector<int32_t> table_of_row_;  // [step_tokens]
  // Where this rank samples.
  std::vector<int32_t> history_;     // [slot_count, context_length]
  std::vector<int32_t> bias_ids_;    // [slot_count, kMaxLogitBiases]
  std::vector<float> biases_;        // [slot_count, kMaxLogitBiases]
  std::vector<int32_t> suppressed_;  // [slot_count, kMaxSuppressedIds]
};

// Token rows of an entry.
int64_t EntryRows(const v1::Entry& entry);

}  // namespace pergola
