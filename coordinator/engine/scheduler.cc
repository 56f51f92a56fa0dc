#include "coordinator/engine/scheduler.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace pergola {
namespace {

// While prompts are being computed, decodes leave them one row in so many: a full house of decodes
// must not starve a prompt that already holds a slot and blocks.
constexpr uint32_t kPrefillShare = 4;
// At admission one block in so many running sequences stays free, or the next decode would preempt
// at once.
constexpr uint32_t kRunningPerSpareBlock = 8;

bool Older(const Sequence* a, const Sequence* b) {
  return a->id < b->id;
}

// Longest without a token first; by age where equal.
bool WaitsLonger(const Sequence* a, const Sequence* b) {
  return a->last_plan != b->last_plan ? a->last_plan < b->last_plan : a->id < b->id;
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits)
    : limits_(limits), blocks_(limits.block_count), slots_(limits.slot_count, nullptr) {
  PERGOLA_CHECK(limits.slot_count > 0 && limits.block_count > 0 && limits.block_tokens > 0);
  PERGOLA_CHECK(limits.step_tokens > 0 && limits.prefill_rows > 0 && limits.stages > 0);
  for (uint32_t slot = limits.slot_count; slot > 0; --slot) free_slots_.push_back(slot - 1);
  ring_.resize(depth());
}

uint32_t Scheduler::BlocksFor(uint64_t positions) const {
  return static_cast<uint32_t>((positions + limits_.block_tokens - 1) / limits_.block_tokens);
}

bool Scheduler::Decodes(const Sequence& sequence) const {
  const uint64_t length = sequence.known.size() + sequence.pending;
  return sequence.planned + 1 == length && length < sequence.max_known;
}

bool Scheduler::Prefills(const Sequence& sequence) const {
  return sequence.planned + 1 < sequence.known.size() + sequence.pending;
}

// `decoding`: how many running sequences are past their prompt.
bool Scheduler::MayDecodeNow(const Sequence& sequence, uint32_t decoding) const {
  if (sequence.pending == 0) return true;
  if (sequence.last_plan + limits_.stages <= next_plan_) return true;
  // Too few sequences to fill the pipe: the stall costs nobody, and one plan ahead keeps the
  // coordinator's latency off the path of each token.
  return decoding < limits_.stages && sequence.pending < 2;
}

std::shared_ptr<v1::StepPlan> Scheduler::Plan(Admission& admission) {
  if (in_flight() >= depth()) return nullptr;
  auto plan = std::make_shared<v1::StepPlan>();
  EntriesOf(next_plan_).clear();
  Building building{plan.get(), limits_.step_tokens};
  PlanDecodes(building, admission);
  PlanPrefills(building, admission);
  if (plan->entries_size() == 0) return nullptr;
  plan->set_plan_id(next_plan_);
  plan->set_epoch(limits_.epoch);
  ++next_plan_;
  return plan;
}

std::shared_ptr<v1::StepPlan> Scheduler::Probe() {
  PERGOLA_CHECK(in_flight() < depth());
  auto plan = std::make_shared<v1::StepPlan>();
  plan->set_plan_id(next_plan_);
  plan->set_epoch(limits_.epoch);
  EntriesOf(next_plan_).clear();
  ++next_plan_;
  return plan;
}

void Scheduler::PlanDecodes(Building& building, Admission& admission) {
  uint32_t decoding = 0;
  bool prefilling = false;
  for (const Sequence* sequence : running_) {
    decoding += Decodes(*sequence) ? 1 : 0;
    prefilling = prefilling || Prefills(*sequence);
  }
  candidates_.clear();
  for (Sequence* sequence : running_) {
    if (Decodes(*sequence) && MayDecodeNow(*sequence, decoding)) candidates_.push_back(sequence);
  }
  uint32_t rows = building.rows_left;
  if (prefilling) rows -= std::max(1U, rows / kPrefillShare);
  const size_t micro_batch = (decoding + limits_.stages - 1) / limits_.stages;
  const size_t count = std::min({candidates_.size(), micro_batch, static_cast<size_t>(rows)});
  if (count < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(count),
                     candidates_.end(), WaitsLonger);
    candidates_.resize(count);
    std::sort(candidates_.begin(), candidates_.end(), Older);
  }
  // Oldest first, so that a victim of preemption (the youngest) is never in the plan already.
  for (Sequence* sequence : candidates_) {
    if (!sequence->running()) continue;
    if (GrowForDecode(*sequence, building, admission)) AddEntry(*sequence, 1, building);
  }
}

// Makes sure that the sequence has the block for its next position, at the cost of younger
// sequences. False if it was itself the youngest and had to go.
bool Scheduler::GrowForDecode(Sequence& sequence, Building& building, Admission& admission) {
  const uint32_t needed = BlocksFor(sequence.planned + 1);
  while (sequence.blocks.size() < needed) {
    if (blocks_.Take(1, &sequence.blocks)) continue;
    Sequence& victim = *running_.back();
    Release(victim);
    ++preemptions_;
    building.preempted = true;
    admission.Preempted(victim);
    if (&victim == &sequence) return false;
  }
  return true;
}

void Scheduler::PlanPrefills(Building& building, Admission& admission) {
  uint32_t budget = std::min(limits_.prefill_rows, building.rows_left);
  for (Sequence* sequence : running_) {
    if (budget == 0) return;
    if (!Prefills(*sequence)) continue;
    const uint32_t missing = static_cast<uint32_t>(sequence->known.size()) - sequence->planned;
    const uint32_t rows = std::min(budget, missing);
    AddEntry(*sequence, rows, building);
    budget -= rows;
  }
  // Who was just preempted is first in the queue: admission waits for a plan that needed no victim.
  while (budget > 0 && !building.preempted && !free_slots_.empty()) {
    Sequence* sequence = admission.Next();
    if (sequence == nullptr) return;
    const auto running = static_cast<uint32_t>(running_.size());
    const uint32_t spare = (running + kRunningPerSpareBlock - 1) / kRunningPerSpareBlock;
    if (blocks_.free_count() < BlocksFor(sequence->known.size()) + spare) return;
    PlaceInSlot(*sequence);
    admission.Admitted(*sequence);
    const uint32_t rows = std::min(budget, static_cast<uint32_t>(sequence->known.size()));
    AddEntry(*sequence, rows, building);
    budget -= rows;
  }
}

void Scheduler::PlaceInSlot(Sequence& sequence) {
  PERGOLA_CHECK(!sequence.running() && !sequence.known.empty());
  PERGOLA_CHECK(BlocksFor(sequence.max_known) <= blocks_.total());
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  slots_[sequence.slot] = &sequence;
  sequence.scheduler = this;
  sequence.run = next_run_++;
  sequence.started = false;
  sequence.blocks_sent = 0;
  sequence.last_plan = 0;
  PERGOLA_CHECK(blocks_.Take(BlocksFor(sequence.known.size()), &sequence.blocks));
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, Older), &sequence);
}

void Scheduler::AddEntry(Sequence& sequence, uint32_t rows, Building& building) {
  v1::StepPlan& plan = *building.plan;
  if (!sequence.started) {
    v1::SlotStart& start = *plan.add_starts();
    start.set_slot(sequence.slot);
    *start.mutable_sampling() = sequence.request.sampling;
    start.set_seed(sequence.request.seed);
    start.set_index(sequence.request.index);
    sequence.started = true;
  }
  const auto entry_index = static_cast<uint32_t>(plan.entries_size());
  v1::Entry& entry = *plan.add_entries();
  entry.set_slot(sequence.slot);
  entry.set_first_position(sequence.planned);
  if (sequence.planned < sequence.known.size()) {
    const int32_t* ids = sequence.known.data() + sequence.planned;
    entry.mutable_ids()->Add(ids, ids + rows);
  } else {
    entry.mutable_from()->set_plan_id(sequence.last_plan);
    entry.mutable_from()->set_entry(sequence.last_entry);
  }
  if (sequence.blocks_sent < sequence.blocks.size()) {
    entry.set_block_table_from(sequence.blocks_sent);
    entry.mutable_block_ids()->Add(sequence.blocks.begin() + sequence.blocks_sent,
                                   sequence.blocks.end());
    sequence.blocks_sent = static_cast<uint32_t>(sequence.blocks.size());
  }
  sequence.planned += rows;
  const bool samples = sequence.planned == sequence.known.size() + sequence.pending;
  if (samples) {
    entry.add_logits_at(rows - 1);
    ++sequence.pending;
    sequence.last_plan = next_plan_;
    sequence.last_entry = entry_index;
  }
  building.rows_left -= rows;
  EntriesOf(next_plan_).push_back({sequence.slot, sequence.run, rows, samples});
}

Sequence* Scheduler::Current(const PlannedEntry& entry) const {
  Sequence* sequence = slots_[entry.slot];
  return sequence != nullptr && sequence->run == entry.run ? sequence : nullptr;
}

absl::Status Scheduler::CheckShape(const v1::StepResult& result) const {
  if (in_flight() == 0 || result.plan_id() != oldest_plan_) {
    return absl::InvalidArgumentError(absl::StrCat("result of plan ", result.plan_id(), ", but ",
                                                   in_flight(), " plans from ", oldest_plan_,
                                                   " on are unanswered"));
  }
  const std::vector<PlannedEntry>& entries = ring_[oldest_plan_ % depth()];
  if (static_cast<size_t>(result.entries_size()) != entries.size()) {
    return absl::InvalidArgumentError(absl::StrCat("result of plan ", result.plan_id(), " has ",
                                                   result.entries_size(), " entries, the plan has ",
                                                   entries.size()));
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    const v1::EntryResult& entry = result.entries(static_cast<int>(i));
    const bool ok = entry.status() == v1::ENTRY_STATUS_OK;
    if (!ok && entry.status() != v1::ENTRY_STATUS_NAN) {
      return absl::InvalidArgumentError(absl::StrCat("result of plan ", result.plan_id(), " entry ",
                                                     i, " has unknown status ",
                                                     static_cast<int>(entry.status())));
    }
    const int expected = ok && entries[i].samples ? 1 : 0;
    if (entry.ids_size() != expected) {
      return absl::InvalidArgumentError(absl::StrCat("result of plan ", result.plan_id(), " entry ",
                                                     i, " has ", entry.ids_size(),
                                                     " ids instead of ", expected));
    }
    if (expected == 1 &&
        (entry.ids(0) < 0 || static_cast<uint32_t>(entry.ids(0)) >= limits_.vocabulary_size)) {
      return absl::InvalidArgumentError(
          absl::StrCat("result of plan ", result.plan_id(), " entry ", i, " has id ", entry.ids(0),
                       ", the vocabulary ends at ", limits_.vocabulary_size));
    }
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Apply(const v1::StepResult& result, std::vector<Outcome>* outcomes) {
  outcomes->clear();
  absl::Status shape = CheckShape(result);
  if (!shape.ok()) return shape;
  const std::vector<PlannedEntry>& entries = EntriesOf(oldest_plan_);
  for (size_t i = 0; i < entries.size(); ++i) {
    const v1::EntryResult& answer = result.entries(static_cast<int>(i));
    Sequence* sequence = Current(entries[i]);
    if (sequence == nullptr) {
      overrun_tokens_ += static_cast<uint64_t>(answer.ids_size());
      continue;
    }
    sequence->computed += entries[i].rows;
    PERGOLA_CHECK(sequence->computed <= sequence->planned);
    if (entries[i].samples) --sequence->pending;
    if (answer.status() != v1::ENTRY_STATUS_OK) {
      outcomes->push_back({sequence, answer.status()});
    } else if (entries[i].samples) {
      sequence->known.push_back(answer.ids(0));
      outcomes->push_back({sequence, v1::ENTRY_STATUS_OK});
    }
  }
  ++oldest_plan_;
  return absl::OkStatus();
}

void Scheduler::Release(Sequence& sequence) {
  PERGOLA_CHECK(sequence.running() && slots_[sequence.slot] == &sequence);
  slots_[sequence.slot] = nullptr;
  free_slots_.push_back(sequence.slot);
  blocks_.Return(&sequence.blocks);
  running_.erase(std::lower_bound(running_.begin(), running_.end(), &sequence, Older));
  sequence.slot = Sequence::kNoSlot;
  sequence.scheduler = nullptr;
  sequence.computed = sequence.planned = sequence.pending = 0;
}

std::vector<Sequence*> Scheduler::SequencesOf(uint64_t plan_id) const {
  std::vector<Sequence*> sequences;
  if (plan_id < oldest_plan_ || plan_id >= next_plan_) return sequences;
  for (const PlannedEntry& entry : ring_[plan_id % depth()]) {
    if (Sequence* sequence = Current(entry)) sequences.push_back(sequence);
  }
  return sequences;
}

uint32_t Scheduler::entries_of_oldest() const {
  return in_flight() == 0 ? 0 : static_cast<uint32_t>(ring_[oldest_plan_ % depth()].size());
}

}  // namespace pergola
