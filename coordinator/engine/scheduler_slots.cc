// Scheduler: who gets a slot and blocks, from where it starts, and who loses them.
#include <algorithm>

#include "base/check.h"
#include "coordinator/engine/scheduler.h"
#include "coordinator/engine/waiting_queue.h"

namespace pergola {
namespace {

// The watermark: admission leaves so many blocks free, or the next decodes would preempt at once
// whom it let in. One for each running sequence, which then goes on for block_tokens steps, and at
// least so many of a hundred blocks.
constexpr uint32_t kSparePercent = 1;

}  // namespace

// Nobody runs: nobody's growth has to be left room for, and what fits the pool must get it.
uint32_t Scheduler::SpareBlocks() const {
  const auto running = static_cast<uint32_t>(running_.size());
  if (running == 0) return 0;
  return std::max(running, static_cast<uint32_t>(uint64_t{blocks_.total()} * kSparePercent / 100));
}

bool Scheduler::Fits(const Sequence& sequence, const Start& start) const {
  if (free_slots_.empty()) return false;
  // Sharing a cached block takes it from the free ones.
  const auto revived = static_cast<uint32_t>(
      std::count_if(start.shared.begin(), start.shared.end(),
                    [&](uint32_t block) { return blocks_.references(block) == 0; }));
  const uint32_t own =
      BlocksFor(sequence.known.size()) - static_cast<uint32_t>(start.shared.size());
  return blocks_.free_count() >= uint64_t{revived} + own + SpareBlocks();
}

bool Scheduler::HasRoomFor(Sequence& sequence) {
  return Fits(sequence, FindStart(sequence));
}

// Gives it slot and blocks, at the cost of stalled readers if need be. False: there is no room.
bool Scheduler::MakeRoom(Sequence& sequence, Building& building) {
  Start start = FindStart(sequence);
  while (!Fits(sequence, start)) {
    Sequence* stalled = StalledReader();
    if (stalled == nullptr) return false;
    Preempt(*stalled, building);
    start = FindStart(sequence);
  }
  PlaceInSlot(sequence, start, building);
  building.admission.Admitted(sequence);
  return true;
}

void Scheduler::PlaceInSlot(Sequence& sequence, const Start& start, Building& building) {
  PERGOLA_CHECK(!sequence.running() && !sequence.known.empty() && sequence.blocks.empty());
  PERGOLA_CHECK(BlocksFor(sequence.max_known) <= blocks_.total());
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  slots_[sequence.slot] = &sequence;
  sequence.scheduler = this;
  sequence.run = next_run_++;
  sequence.started = false;
  sequence.blocks_sent = 0;
  sequence.last_plan = sequence.newest_plan = sequence.prompt_plan = 0;
  for (const uint32_t block : start.shared) blocks_.Share(block);
  sequence.blocks = start.shared;
  const auto shared = static_cast<uint32_t>(start.shared.size());
  PERGOLA_CHECK(blocks_.Take(BlocksFor(sequence.known.size()) - shared, &sequence.blocks));
  if (start.copied) {
    v1::BlockCopy& copy = *building.plan->add_copies();
    copy.set_from_block(*start.copied);
    copy.set_to_block(sequence.blocks[shared]);
  }
  sequence.published = shared;
  sequence.computed = sequence.planned = start.computed;
  prefix_counts_.hit_tokens += start.computed;
  prefix_counts_.missed_tokens += sequence.known.size() - start.computed;
  prefix_counts_.forks += start.forks ? 1 : 0;
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, Before), &sequence);
}

void Scheduler::Preempt(Sequence& victim, Building& building) {
  Release(victim);
  ++preemptions_;
  building.preempted = building.preempted || !victim.paused;
  building.admission.Preempted(victim);
}

// Of those that are not in the plan being made, the one with the least claim to its blocks.
Sequence* Scheduler::Victim() const {
  Sequence* victim = nullptr;
  for (Sequence* sequence : running_) {
    if (sequence->newest_plan == next_plan_) continue;
    if (victim == nullptr || KeepsBlocksBefore(victim, sequence)) victim = sequence;
  }
  PERGOLA_CHECK(victim != nullptr);
  return victim;
}

// Who may go for a newcomer: its reader takes nothing, and no answer is still on its way to it.
Sequence* Scheduler::StalledReader() const {
  for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
    if ((*it)->stalled && (*it)->pending == 0 && (*it)->computed == (*it)->planned) return *it;
  }
  return nullptr;
}

void Scheduler::Release(Sequence& sequence) {
  PERGOLA_CHECK(sequence.running() && slots_[sequence.slot] == &sequence);
  slots_[sequence.slot] = nullptr;
  free_slots_.push_back(sequence.slot);
  blocks_.Return(&sequence.blocks);
  running_.erase(std::lower_bound(running_.begin(), running_.end(), &sequence, Before));
  sequence.slot = Sequence::kNoSlot;
  sequence.scheduler = nullptr;
  sequence.computed = sequence.planned = sequence.pending = 0;
}

void Scheduler::ExtendKeys(Sequence& sequence, uint32_t count) const {
  const uint32_t tokens = limits_.block_tokens;
  if (sequence.key_tokens != tokens) {
    sequence.keys.clear();
    sequence.key_tokens = tokens;
  }
  while (sequence.keys.size() < count) {
    const size_t done = sequence.keys.size();
    const PrefixKey before = done == 0 ? PrefixRoot(limits_.prefix_secret, sequence.request.tenant)
                                       : sequence.keys.back();
    sequence.keys.push_back(
        PrefixNext(limits_.prefix_secret, before, sequence.known.data() + done * tokens, tokens));
  }
}

// The full blocks of which each id is known and each position is in a plan.
void Scheduler::PublishBlocks(Sequence& sequence) {
  if (!limits_.prefix_cache) return;
  const uint64_t written = std::min<uint64_t>(sequence.planned, sequence.known.size());
  const auto full = static_cast<uint32_t>(written / limits_.block_tokens);
  if (sequence.published >= full) return;
  ExtendKeys(sequence, full);
  for (; sequence.published < full; ++sequence.published) {
    blocks_.Publish(sequence.keys[sequence.published], sequence.blocks[sequence.published]);
  }
}

// The longest beginning of `known` that stands in blocks. At least the last id is computed: its
// logits are needed.
Scheduler::Start Scheduler::FindStart(Sequence& sequence) {
  Start start;
  // The logits of every prompt position are needed.
  if (sequence.scores()) return start;
  const auto most = static_cast<uint32_t>(sequence.known.size() - 1);
  const uint32_t full = limits_.prefix_cache ? most / limits_.block_tokens : 0;
  for (uint32_t i = 0; i < full; ++i) {
    ExtendKeys(sequence, i + 1);
    const std::optional<uint32_t> block = blocks_.Find(sequence.keys[i]);
    if (!block) break;
    start.shared.push_back(*block);
  }
  start.computed = static_cast<uint32_t>(start.shared.size()) * limits_.block_tokens;
  ForkStart(sequence, &start);
  return start;
}

// Behind the prompt of a sibling whose prompt a plan that was sent completes.
void Scheduler::ForkStart(const Sequence& sequence, Start* start) const {
  const ForkGroup* group = sequence.request.fork_group.get();
  if (group == nullptr || group->leader == nullptr || group->leader == &sequence) return;
  const Sequence& leader = *group->leader;
  if (leader.scheduler != this || leader.planned < leader.prompt_count) return;
  if (leader.prompt_plan == next_plan_ || leader.prompt_count != sequence.prompt_count) return;
  const uint32_t computed =
      std::min(static_cast<uint32_t>(sequence.known.size()) - 1, sequence.prompt_count);
  if (computed <= start->computed) return;
  if (!std::equal(leader.known.begin(), leader.known.begin() + computed, sequence.known.begin())) {
    return;
  }
  const uint32_t full = computed / limits_.block_tokens;
  start->shared.assign(leader.blocks.begin(), leader.blocks.begin() + full);
  start->computed = computed;
  start->forks = true;
  if (computed % limits_.block_tokens != 0) start->copied = leader.blocks[full];
}

uint32_t Scheduler::CachedTokens(Sequence& sequence) {
  return FindStart(sequence).computed;
}

}  // namespace pergola
