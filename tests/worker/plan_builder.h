// Plans for tests, in one line each.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "pergola/v1/worker.pb.h"

namespace pergola {

struct BuiltPlan {
  v1::StepPlan plan;
  std::vector<int32_t> ids;  // of all entries, in order

  explicit BuiltPlan(uint64_t plan_id = 1) {
    plan.set_plan_id(plan_id);
    plan.set_epoch(1);
  }

  v1::SlotStart* Start(uint32_t slot, float temperature = 0, uint64_t seed = 0) {
    v1::SlotStart* start = plan.add_starts();
    start->set_slot(slot);
    start->set_seed(seed);
    start->mutable_sampling()->set_temperature(temperature);
    start->mutable_sampling()->set_top_p(1);
    return start;
  }

  // Computes `tokens` from `first_position` on and wants the logits of the last.
  v1::Entry* Add(uint32_t slot, const std::vector<int32_t>& tokens, int64_t first_position,
                 const std::vector<uint32_t>& blocks = {}) {
    v1::Entry* entry = plan.add_entries();
    entry->set_slot(slot);
    entry->mutable_ids()->Add(tokens.begin(), tokens.end());
    entry->set_first_position(static_cast<uint32_t>(first_position));
    entry->mutable_block_ids()->Add(blocks.begin(), blocks.end());
    entry->add_logits_at(static_cast<uint32_t>(tokens.size()) - 1);
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    return entry;
  }

  static void WantAll(v1::Entry* entry) {
    entry->clear_logits_at();
    for (int i = 0; i < entry->ids_size(); ++i) entry->add_logits_at(i);
  }
};

// `count` block ids from `first` on.
inline std::vector<uint32_t> Blocks(uint32_t first, uint32_t count) {
  std::vector<uint32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), first);
  return blocks;
}

}  // namespace pergola
