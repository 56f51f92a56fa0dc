// What a group computes next. Pure: no clock, no thread, no I/O; the same calls give the same
// plans. It owns the group's slots and blocks and the plans in flight, but no sequence: those are
// lent by the engine core while they are in a slot.
//
// Continuous batching over paged KV: decodes first, then prompt chunks of the sequences in slots
// (in their order), then admission, all within one budget of rows. With S stages at most S + 1
// plans are in flight, and a sequence is in every S-th plan at most, so that S micro-batches of
// about equal size follow one another through the stages (a plan that needs the token of the plan
// just before it would stall the first stage until the last one has sampled).
//
// Full blocks whose ids are known enter the prefix index with the plan that fills them; a sequence
// that gets a slot starts behind its longest cached prefix, and a sibling of a running sequence
// behind the whole prompt, with a copy of the block that the prompt ends in.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/engine/block_pool.h"
#include "coordinator/engine/sequence.h"
#include "coordinator/engine/step_cost.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

struct SchedulerLimits {
  uint64_t epoch = 0;
  uint32_t slot_count = 0;
  uint32_t block_count = 0;
  uint32_t block_tokens = 0;
  uint32_t step_tokens = 0;  // most rows in a plan
  // Most prompt rows in a plan, beside decodes, where step_target_us does not say another number.
  uint32_t prefill_rows = 0;
  uint32_t stages = 1;
  uint32_t vocabulary_size = 0;
  // While sequences decode, a plan has as many rows as end within this time, by the measured cost.
  // 0: prefill_rows always.
  int64_t step_target_us = 0;
  bool prefix_cache = true;
  PrefixKey prefix_secret;
};

// What became of the positions of sequences when they got a slot.
struct PrefixCounts {
  uint64_t hit_tokens = 0;     // stood in blocks already
  uint64_t missed_tokens = 0;  // are to be computed
  uint64_t forks = 0;          // sequences that started behind a sibling's prompt
  PrefixCounts& operator+=(const PrefixCounts& other) {
    hit_tokens += other.hit_tokens;
    missed_tokens += other.missed_tokens;
    forks += other.forks;
    return *this;
  }
};

// The waiting queue as the scheduler sees it.
class Admission {
 public:
  // Who is next for this group, or null. Asked again until Admitted() or the end of the plan.
  virtual Sequence* Next() = 0;
  // The sequence returned by Next() now has a slot: it leaves the queue.
  virtual void Admitted(Sequence& sequence) = 0;
  // Its slot and blocks were taken for another sequence: it is back in the queue, `known`
  // untouched.
  virtual void Preempted(Sequence& sequence) = 0;

 protected:
  ~Admission() = default;
};

class Scheduler {
 public:
  // All limits at least 1 (CHECK).
  explicit Scheduler(const SchedulerLimits& limits);

  // The next plan, or null if depth() plans are unanswered or there is nothing to compute.
  std::shared_ptr<v1::StepPlan> Plan(Admission& admission);
  // A plan without entries. CHECKs that in_flight() < depth().
  std::shared_ptr<v1::StepPlan> Probe();

  // What an answered entry means for a sequence still in its slot: a new token (known.back()), more
  // of its prompt scored, both, or a NaN.
  struct Outcome {
    Sequence* sequence;
    v1::EntryStatus status;
    bool token;
    const v1::EntryResult* answer;  // borrowed from the result
    uint32_t first_target;          // the target log-probabilities before it are known already
  };
  // Takes the answer of the oldest plan. Any other plan id or a shape that is not the plan's is an
  // error that names it, and nothing has changed. `outcomes` is overwritten.
  absl::Status Apply(const v1::StepResult& result, std::vector<Outcome>* outcomes);

  // The sequence leaves its slot (ended, preempted, group lost): slot and blocks are free for the
  // next plan, computed = planned = 0, `known` stays; results of plans in flight will be dropped.
  void Release(Sequence& sequence);

  // How many positions of a waiting sequence's `known` stand in blocks of this group.
  uint32_t CachedTokens(Sequence& sequence);
  // Whether it could get a slot and its blocks now.
  bool HasRoomFor(Sequence& sequence);

  // Sequences in slots, in the order of Before().
  const std::vector<Sequence*>& running() const { return running_; }
  // Sequences still in their slots that are in unanswered plan `plan_id`; empty if there is no such
  // plan.
  std::vector<Sequence*> SequencesOf(uint64_t plan_id) const;

  uint32_t depth() const { return limits_.stages + 1; }
  uint32_t in_flight() const { return static_cast<uint32_t>(next_plan_ - oldest_plan_); }
  uint64_t oldest_plan() const { return oldest_plan_; }  // without a result; next_plan() if none
  uint64_t next_plan() const { return next_plan_; }
  uint32_t entries_of_oldest() const;
  uint32_t free_slots() const { return static_cast<uint32_t>(free_slots_.size()); }
  const BlockPool& blocks() const { return blocks_; }
  const SchedulerLimits& limits() const { return limits_; }
  uint64_t overrun_tokens() const { return overrun_tokens_; }
  uint64_t preemptions() const { return preemptions_; }
  const PrefixCounts& prefix_counts() const { return prefix_counts_; }
  const StepCost& cost() const { return cost_; }
  // Blocks that hold `positions` positions.
  uint32_t BlocksFor(uint64_t positions) const;

 private:
  struct PlannedEntry {
    uint32_t slot;
    uint64_t run;
    uint32_t first_position;
    uint32_t rows;
    uint32_t targets;
    bool samples;
  };
  struct Building {
    v1::StepPlan* plan;
    Admission& admission;
    uint32_t rows_left;
    uint32_t decoding = 0;   // running sequences past their prompt
    bool preempted = false;  // somebody had to go for a block
  };
  // Where a sequence starts that gets a slot.
  struct Start {
    std::vector<uint32_t> shared;  // blocks that hold its beginning
    uint32_t computed = 0;         // positions in those and in `copied`
    bool forks = false;
    std::optional<uint32_t> copied;  // the block that its first own one begins as a copy of
  };

  // scheduler.cc: who is in a plan.
  bool Decodes(const Sequence& sequence) const;
  bool Prefills(const Sequence& sequence) const;
  uint32_t MissingRows(const Sequence& sequence) const;
  bool MayDecodeNow(const Sequence& sequence, uint32_t decoding) const;
  void PlanDecodes(Building& building);
  void PlanPrefills(Building& building);
  uint32_t PromptRows(const Building& building) const;
  bool GrowForDecode(Sequence& sequence, Building& building);
  void AddEntry(Sequence& sequence, uint32_t rows, Building& building);
  void AddStart(Sequence& sequence, Building& building);
  void AddTargets(Sequence& sequence, uint32_t rows, v1::Entry& entry);

  // scheduler_slots.cc: who gets and who loses slot and blocks.
  bool MakeRoom(Sequence& sequence, Building& building);
  bool Fits(const Sequence& sequence, const Start& start) const;
  uint32_t SpareBlocks() const;
  void PlaceInSlot(Sequence& sequence, const Start& start, Building& building);
  void Preempt(Sequence& victim, Building& building);
  Sequence* Victim() const;
  Sequence* StalledReader() const;
  Start FindStart(Sequence& sequence);
  void ForkStart(const Sequence& sequence, Start* start) const;
  void ExtendKeys(Sequence& sequence, uint32_t count) const;
  void PublishBlocks(Sequence& sequence);

  // scheduler_results.cc: what answers mean.
  std::vector<PlannedEntry>& EntriesOf(uint64_t plan_id) { return ring_[plan_id % depth()]; }
  Sequence* Current(const PlannedEntry& entry) const;
  absl::Status CheckShape(const v1::StepResult& result) const;
  absl::Status CheckEntry(const v1::EntryResult& answer, const PlannedEntry& planned) const;

  const SchedulerLimits limits_;
  BlockPool blocks_;
  std::vector<uint32_t> free_slots_;
  std::vector<Sequence*> slots_;    // by slot; null: free
  std::vector<Sequence*> running_;  // in the order of Before()
  uint64_t next_run_ = 1;
  uint64_t next_plan_ = 1;
  uint64_t oldest_plan_ = 1;
  std::vector<std::vector<PlannedEntry>> ring_;  // of the plans in flight, by plan id modulo depth
  std::vector<Sequence*> candidates_;            // scratch of PlanDecodes
  uint64_t overrun_tokens_ = 0;
  uint64_t preemptions_ = 0;
  PrefixCounts prefix_counts_;
  StepCost cost_;
};

// The order of sequences: by rank, then by age.
inline bool Before(const Sequence* a, const Sequence* b) {
  return a->rank != b->rank ? a->rank < b->rank : a->id < b->id;
}

}  // namespace pergola
