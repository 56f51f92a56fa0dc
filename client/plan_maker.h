// Makes the report of `pergola plan`: which layout, whether it fits, how fast at best. Pure but for
// opening the model's headers.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "client/plan_report.h"

namespace pergola {

struct PlanOptions {
  std::string model;  // a path, or a name of KnownShapeNames
  std::string gpu;    // empty: this machine's CPU
  int nodes = 1;
  int gpus_per_node = 8;
  int tensor_parallel = 0;     // 0: try those possible (CPU: 1)
  int pipeline_parallel = 0;   // likewise
  std::string dtype = "auto";  // of the matrices; auto: the checkpoint's, bf16 for a name
  std::string kv_dtype;        // empty: f32 if all matrices are, else f16
  int64_t context_length = 0;
  int64_t length = 0;      // cached tokens per sequence the times are for; 0: half the context
  int64_t batch = 32;      // the load layouts are compared at
  int64_t slot_count = 0;  // 0: 512 with a GPU, else the worker's 64
  int64_t block_tokens = 32;
  int64_t step_tokens = 512;
  int64_t kv_bytes = 0;          // per rank, CPU only
  int64_t available_memory = 0;  // of this machine; 0: unknown
};

// Opens the model or looks its name up. INVALID_ARGUMENT or NOT_FOUND naming what is known.
absl::StatusOr<ShapeSpec> OpenShape(const PlanOptions& options);

// RESOURCE_EXHAUSTED if no layout fits: what is missing in bytes and what would fit. Other errors
// are the user's: flags, names, a layout the model cannot take.
absl::StatusOr<PlanReport> MakePlan(const ShapeSpec& shape, const PlanOptions& options);

}  // namespace pergola
