// What a group computes next. Pure: no clock, no thread, no I/O; the same calls give the same
// plans. It owns the group's slots and blocks and the plans in flight, but no sequence: those are
// lent by the engine core while they are in a slot.
//
// Continuous batching over paged KV: decodes first, then prompt chunks of the sequences in slots
// (oldest first), then admission. With S stages at most S + 1 plans are in flight, and a sequence
// is in every S-th plan at most, so that S micro-batches of about equal size follow one another
// through the stages (a plan that needs the token of the plan just before it would stall the first
// stage until the last one has sampled).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/engine/block_pool.h"
#include "coordinator/engine/sequence.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

struct SchedulerLimits {
  uint64_t epoch = 0;
  uint32_t slot_count = 0;
  uint32_t block_count = 0;
  uint32_t block_tokens = 0;
  uint32_t step_tokens = 0;   // most rows in a plan
  uint32_t prefill_rows = 0;  // most prompt rows in a plan, beside decodes
  uint32_t stages = 1;
  uint32_t vocabulary_size = 0;
};

// The waiting queue as the scheduler sees it.
class Admission {
 public:
  // Who is next for this group, or null. Asked again until Admitted() or the end of the plan.
  virtual Sequence* Next() = 0;
  // The sequence returned by Next() now has a slot: it leaves the queue.
  virtual void Admitted(Sequence& sequence) = 0;
  // Its slot and blocks were taken for an older sequence: it is back in the queue, `known`
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

  // What an answered entry means for a sequence still in its slot: a new token (known.back()), or a
  // NaN.
  struct Outcome {
    Sequence* sequence;
    v1::EntryStatus status;
  };
  // Takes the answer of the oldest plan. Any other plan id or a shape that is not the plan's is an
  // error that names it, and nothing has changed. `outcomes` is overwritten.
  absl::Status Apply(const v1::StepResult& result, std::vector<Outcome>* outcomes);

  // The sequence leaves its slot (ended, preempted, group lost): slot and blocks are free for the
  // next plan, computed = planned = 0, `known` stays; results of plans in flight will be dropped.
  void Release(Sequence& sequence);

  // Sequences in slots, oldest first.
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
  // Blocks that hold `positions` positions.
  uint32_t BlocksFor(uint64_t positions) const;

 private:
  struct PlannedEntry {
    uint32_t slot;
    uint64_t run;
    uint32_t rows;
    bool samples;
  };
  struct Building {
    v1::StepPlan* plan;
    uint32_t rows_left;
    bool preempted = false;
  };

  bool Decodes(const Sequence& sequence) const;
  bool Prefills(const Sequence& sequence) const;
  bool MayDecodeNow(const Sequence& sequence, uint32_t decoding) const;
  void PlanDecodes(Building& building, Admission& admission);
  void PlanPrefills(Building& building, Admission& admission);
  void PlaceInSlot(Sequence& sequence);
  bool GrowForDecode(Sequence& sequence, Building& building, Admission& admission);
  void AddEntry(Sequence& sequence, uint32_t rows, Building& building);
  std::vector<PlannedEntry>& EntriesOf(uint64_t plan_id) { return ring_[plan_id % depth()]; }
  Sequence* Current(const PlannedEntry& entry) const;
  absl::Status CheckShape(const v1::StepResult& result) const;

  const SchedulerLimits limits_;
  BlockPool blocks_;
  std::vector<uint32_t> free_slots_;
  std::vector<Sequence*> slots_;    // by slot; null: free
  std::vector<Sequence*> running_;  // ascending id
  uint64_t next_run_ = 1;
  uint64_t next_plan_ = 1;
  uint64_t oldest_plan_ = 1;
  std::vector<std::vector<PlannedEntry>> ring_;  // of the plans in flight, by plan id modulo depth
  std::vector<Sequence*> candidates_;            // scratch of PlanDecodes
  uint64_t overrun_tokens_ = 0;
  uint64_t preemptions_ = 0;
};

}  // namespace pergola
