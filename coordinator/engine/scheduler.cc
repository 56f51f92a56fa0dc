#include "coordinator/engine/scheduler.h"

#include <algorithm>

#include "base/check.h"
#include "coordinator/engine/waiting_queue.h"

namespace pergola {
namespace {

// While prompts are being computed, decodes leave them one row in so many: a full house of decodes
// must not starve a prompt that already holds a slot and blocks.
constexpr uint32_t kPrefillShare = 4;
// However dear a row is, a plan has so many prompt rows (prefill_rows if that is less), or a prompt
// would never be done beside decodes that use up the step target alone.
constexpr uint32_t kLeastPromptRows = 16;

// Longest without a token first; in the usual order where equal.
bool WaitsLonger(const Sequence* a, const Sequence* b) {
  return a->last_plan != b->last_plan ? a->last_plan < b->last_plan : Before(a, b);
}

// Whether a parameter looks at the ids of earlier positions (SlotStart.history).
bool LooksBack(const v1::Sampling& sampling) {
  return (sampling.repetition_penalty() != 0 && sampling.repetition_penalty() != 1) ||
         sampling.presence_penalty() != 0 || sampling.frequency_penalty() != 0 ||
         sampling.no_repeat_ngram_size() > 0;
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
  if (sequence.paused) return false;
  const uint64_t length = sequence.known.size() + sequence.pending;
  return sequence.planned + 1 == length && length < sequence.max_known;
}

bool Scheduler::Prefills(const Sequence& sequence) const {
  if (sequence.paused) return false;
  return sequence.planned + 1 < sequence.known.size() + sequence.pending;
}

// Of a sequence that prefills. The last id of a prompt that is only scored has no successor to
// score.
uint32_t Scheduler::MissingRows(const Sequence& sequence) const {
  const auto length = static_cast<uint32_t>(sequence.known.size());
  const bool only_scored = sequence.max_known == sequence.prompt_count;
  return length - sequence.planned - (only_scored ? 1 : 0);
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
  Building building{plan.get(), admission, limits_.step_tokens};
  PlanDecodes(building);
  PlanPrefills(building);
  if (plan->entries_size() == 0) return nullptr;
  plan->set_plan_id(next_plan_);
  plan->set_epoch(limits_.epoch);
  // Only now: what this plan writes may be shared by the next one, not by itself (I3).
  for (const PlannedEntry& entry : EntriesOf(next_plan_)) PublishBlocks(*slots_[entry.slot]);
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

void Scheduler::PlanDecodes(Building& building) {
  uint32_t decoding = 0;
  bool prefilling = false;
  for (const Sequence* sequence : running_) {
    decoding += Decodes(*sequence) ? 1 : 0;
    prefilling = prefilling || Prefills(*sequence);
  }
  building.decoding = decoding;
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
  }
  // Whoever may lose its blocks comes last, so that a victim is not in the plan already.
  if (blocks_.free_count() < count) {
    std::sort(candidates_.begin(), candidates_.end(), KeepsBlocksBefore);
  } else if (count < decoding) {
    std::sort(candidates_.begin(), candidates_.end(), Before);
  }
  for (Sequence* sequence : candidates_) {
    if (!sequence->running()) continue;
    if (GrowForDecode(*sequence, building)) AddEntry(*sequence, 1, building);
  }
}

// Makes sure that the sequence has the block for its next position, at the cost of others. False
// if it was itself the one to go.
bool Scheduler::GrowForDecode(Sequence& sequence, Building& building) {
  const uint32_t needed = BlocksFor(sequence.planned + 1);
  while (sequence.blocks.size() < needed) {
    if (blocks_.Take(1, &sequence.blocks)) continue;
    Sequence& victim = *Victim();
    Preempt(victim, building);
    if (&victim == &sequence) return false;
  }
  return true;
}

// One budget per plan: decodes took theirs, prompts get the rest.
uint32_t Scheduler::PromptRows(const Building& building) const {
  uint32_t rows = limits_.prefill_rows;
  if (limits_.step_target_us > 0 && cost_.known() && building.decoding > 0) {
    const uint32_t all = cost_.RowsWithin(limits_.step_target_us);
    const uint32_t taken = limits_.step_tokens - building.rows_left;
    rows = std::max(all > taken ? all - taken : 0, std::min(kLeastPromptRows, rows));
  }
  return std::min(rows, building.rows_left);
}

void Scheduler::PlanPrefills(Building& building) {
  uint32_t budget = PromptRows(building);
  for (Sequence* sequence : running_) {
    if (budget == 0) return;
    if (!Prefills(*sequence)) continue;
    const uint32_t rows = std::min(budget, MissingRows(*sequence));
    AddEntry(*sequence, rows, building);
    budget -= rows;
  }
  // Who was just preempted is first in the queue: admission waits for a plan that needed no victim.
  while (budget > 0 && !building.preempted) {
    if (free_slots_.empty() && StalledReader() == nullptr) return;
    Sequence* sequence = building.admission.Next();
    if (sequence == nullptr || !MakeRoom(*sequence, building)) return;
    const uint32_t rows = std::min(budget, MissingRows(*sequence));
    AddEntry(*sequence, rows, building);
    budget -= rows;
  }
}

void Scheduler::AddStart(Sequence& sequence, Building& building) {
  v1::SlotStart& start = *building.plan->add_starts();
  start.set_slot(sequence.slot);
  *start.mutable_sampling() = sequence.request.sampling;
  start.set_seed(sequence.request.seed);
  start.set_index(sequence.request.index);
  start.set_computed(sequence.planned);
  start.set_prompt_tokens(sequence.prompt_count);
  if (sequence.planned > 0 && LooksBack(sequence.request.sampling)) {
    start.mutable_history()->Add(sequence.known.data(), sequence.known.data() + sequence.planned);
  }
  sequence.started = true;
}

// The prompt ids that follow the entry's tokens, unless their log-probabilities are known already.
void Scheduler::AddTargets(Sequence& sequence, uint32_t rows, v1::Entry& entry) {
  const uint32_t first = sequence.planned + 1;
  const uint32_t end = std::min(first + rows, sequence.prompt_count);
  if (!sequence.scores() || end <= std::max(first, sequence.scored + 1)) return;
  entry.mutable_targets()->Add(sequence.known.data() + first, sequence.known.data() + end);
  entry.set_target_logprobs(*sequence.request.prompt_logprobs);
}

void Scheduler::AddEntry(Sequence& sequence, uint32_t rows, Building& building) {
  v1::StepPlan& plan = *building.plan;
  if (!sequence.started) AddStart(sequence, building);
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
  AddTargets(sequence, rows, entry);
  const uint32_t first_position = sequence.planned;
  sequence.planned += rows;
  sequence.newest_plan = next_plan_;
  if (first_position < sequence.prompt_count && sequence.planned >= sequence.prompt_count) {
    sequence.prompt_plan = next_plan_;
  }
  const bool samples = sequence.planned == sequence.known.size() + sequence.pending;
  if (samples) {
    entry.add_logits_at(rows - 1);
    ++sequence.pending;
    sequence.last_plan = next_plan_;
    sequence.last_entry = entry_index;
  }
  building.rows_left -= rows;
  EntriesOf(next_plan_)
      .push_back({sequence.slot, sequence.run, first_position, rows,
                  static_cast<uint32_t>(entry.targets_size()), samples});
}

Sequence* Scheduler::Current(const PlannedEntry& entry) const {
  Sequence* sequence = slots_[entry.slot];
  return sequence != nullptr && sequence->run == entry.run ? sequence : nullptr;
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
