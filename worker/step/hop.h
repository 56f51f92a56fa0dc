// The message from a rank of one stage to the same tp_rank of the next: which plan it belongs to,
// the times of the stages so far, and this rank's share of the activations. A share is ceil(values
// / TP) values, the last ones padded with zeros, so that the next stage's all-gather has equal
// parts. Without activations if those go from device to device.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

inline int64_t HopShare(int64_t values, int tensor_parallel) {
  return (values + tensor_parallel - 1) / tensor_parallel;
}

// `header`: plan id, epoch and stages are used. `values`: all of them; rank `tp_rank`'s share is
// taken.
void EncodeHop(const v1::StepResult& header, const float* values, int64_t value_count, int tp_rank,
               int tensor_parallel, std::vector<uint8_t>* message);

// Takes a message apart; `share` receives HopShare(...) floats. INTERNAL if the message is not of
// that plan and size: the stages disagree.
absl::Status DecodeHop(const std::vector<uint8_t>& message, const v1::StepPlan& plan,
                       int64_t share_count, v1::StepResult* header, float* share);

}  // namespace pergola
