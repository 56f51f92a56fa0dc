// Decode and prefill of whole models with random weights, through a worker's step loop: plans in,
// tokens out, sampling and all the host's work included.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/weight_format.h"
#include "tests/gpu/roofs.h"

namespace pergola {

struct ModelCase {
  std::string shape;  // see BenchSpec
  WeightFormat format = WeightFormat::kBF16;
  double goal = 0;  // of the read bandwidth at batch 1
  std::vector<int64_t> batches;
  int64_t prefill = 0;  // tokens of a prompt; 0: not measured
  int64_t layers = 0;   // only so many; 0: all
};

// Results of part "model". An error is the executor's.
absl::Status BenchModel(const ModelCase& model, const Roofs& roofs, bool tiny);

}  // namespace pergola
