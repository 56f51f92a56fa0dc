// The logits of every position of a prompt, from a group of any layout, weight format and device.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tests/worker/executor_group.h"

namespace pergola {

struct LayoutOf {
  int tp = 1, pp = 1;
};

struct LogitsPlace {
  Device device = Device::kCpu;
  DType activation = DType::kF32;
};

// [prompt, vocabulary], of one step. The KV cache is as the activations, whatever the weights are.
inline std::vector<float> AllLogits(const Checkpoint& checkpoint,
                                    const std::vector<int32_t>& prompt, WeightFormat format,
                                    LayoutOf layout = {}, LogitsPlace place = {}) {
  constexpr int64_t kBlock = 16;
  const auto positions = static_cast<int64_t>(prompt.size());
  ExecutorOptions options;
  options.slot_count = 2;
  options.block_tokens = kBlock;
  options.step_tokens = std::max<int64_t>(128, positions);
  options.context_length = (positions + kBlock - 1) / kBlock * kBlock;
  options.kv_dtype = options.activation_dtype = place.activation;
  options.kv_dtype_set = true;
  options.activation_dtype_set = true;
  options.block_count = options.context_length / kBlock;
  options.weights = format;
  ExecutorGroup group(checkpoint, layout.tp, layout.pp, options, 1, place.device);
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
