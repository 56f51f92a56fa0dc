// EngineCore's picture of itself: what people, metrics and admission see.
#include <algorithm>

#include "coordinator/engine/engine_core.h"

namespace pergola {

Load EngineCore::load(TimeUs now) const {
  Load load;
  load.queued = waiting_.size();
  load.queued_bytes = waiting_.bytes();
  load.place_us = pace_.PlaceUs(now);
  for (const auto& [name, group] : groups_) {
    if (!group->ready() || !group->scheduler->cost().known()) continue;
    const StepCost& cost = group->scheduler->cost();
    if (load.step_us > 0 && load.step_us <= cost.TimeUs(1)) continue;
    const PrefixCounts& prefixes = group->scheduler->prefix_counts();
    const auto missed = static_cast<double>(prefixes.missed_tokens);
    const double all = missed + static_cast<double>(prefixes.hit_tokens);
    load.step_us = cost.TimeUs(1);
    load.prompt_row_us = cost.per_row_us() * missed / std::max(1.0, all);
  }
  return load;
}

v1::StatusResponse EngineCore::Status(TimeUs now) const {
  v1::StatusResponse status;
  status.set_serving(serving());
  status.set_draining(draining_);
  status.set_queued(queued());
  status.set_running(static_cast<uint32_t>(sequences_.size() - waiting_.size()));
  status.set_paused(static_cast<uint32_t>(paused_.size()));
  status.set_pauses(pauses_);
  status.set_slow_readers_ended(slow_readers_ended_);
  status.set_requests_total(requests_total_);
  status.set_tokens_total(tokens_total_);
  status.set_replays(replays_);
  status.set_plans_total(plans_total_);
  if (plans_total_ > 0) {
    status.set_mean_batch(static_cast<double>(entries_total_) / static_cast<double>(plans_total_));
  }
  uint64_t overrun = past_overrun_tokens_;
  uint64_t preemptions = past_preemptions_;
  PrefixCounts prefixes = past_prefixes_;
  for (const auto& [name, group] : groups_) {
    v1::GroupStatus& out = *status.add_groups();
    out.set_name(name);
    out.set_state(group->state);
    out.set_epoch(group->epoch);
    *out.mutable_layout() = group->hello.layout();
    out.set_blocks_total(group->hello.block_count());
    out.set_slots_total(group->hello.slot_count());
    out.set_last_fault(group->last_fault);
    out.set_last_step_ms(group->last_step_ms);
    out.set_load_ms(static_cast<uint32_t>(group->load_time / 1000));
    group->step_time.CopyTo(out.mutable_step_time());
    out.set_numerics_id(group->hello.numerics_id());
    out.set_block_tokens(group->hello.block_tokens());
    out.set_step_tokens(group->hello.step_tokens());
    if (group->state == v1::GROUP_STATE_LOADING) *out.mutable_progress() = group->progress;
    if (group->ready()) {
      status.set_model(group->hello.model());
      out.set_blocks_used(group->scheduler->blocks().used_count());
      out.set_slots_used(static_cast<uint32_t>(group->scheduler->running().size()));
      out.set_blocks_cached(group->scheduler->blocks().cached_count());
      prefixes += group->scheduler->prefix_counts();
      overrun += group->scheduler->overrun_tokens();
      preemptions += group->scheduler->preemptions();
    }
  }
  status.set_overrun_tokens(overrun);
  status.set_preemptions(preemptions);
  status.set_prefix_hit_tokens(prefixes.hit_tokens);
  status.set_prefix_missed_tokens(prefixes.missed_tokens);
  status.set_forks(prefixes.forks);
  measured_.CopyTo(&status);
  status.set_uptime_ms(static_cast<uint64_t>((now - started_) / 1000));
  return status;
}

}  // namespace pergola
