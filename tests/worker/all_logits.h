// The logits of every position of a prompt, from a group of any layout and weight format.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/worker/executor_group.h"

namespace pergola {

struct LayoutOf {
  int tp = 1, pp = 1;
};

// [prompt, vocabulary]. The KV cache is f32 whatever the weights are.
inline std::vector<float> AllLogits(const Checkpoint& checkpoint,
                                    const std::vector<int32_t>& prompt, WeightFormat format,
                                    LayoutOf layout = {}) {
  constexpr int64_t kBlock = 16;
  const auto positions = static_cast<int64_t>(prompt.size());
  ExecutorOptions options;
  options.slot_count = 2;
  options.block_tokens = kBlock;
  options.step_tokens = 128;
  options.context_length = (positions + kBlock - 1) / kBlock * kBlock;
  options.kv_dtype = DType::kF32;
  options.kv_dtype_set = true;
  options.block_count = options.context_length / kBlock;
  options.weights = format;
  ExecutorGroup group(checkpoint, layout.tp, layout.pp, options);
  group.KeepLogits(true);
  v1::StepPlan plan;
  plan.set_plan_id(1);
  plan.set_epoch(1);
  plan.add_starts()->mutable_sampling()->set_top_p(1);
  auto* entry = plan.add_entries();
  for (size_t i = 0; i < prompt.size(); ++i) {
    entry->add_ids(prompt[i]);
    entry->add_logits_at(i);
  }
  for (int64_t block = 0; block < options.block_count; ++block) entry->add_block_ids(block);
  group.Execute(plan, prompt);
  std::vector<float> logits;
  for (int64_t row = 0; row < positions; ++row) {
    const absl::Span<const float> some = group.last().Logits(row);
    logits.insert(logits.end(), some.begin(), some.end());
  }
  return logits;
}

}  // namespace pergola
