// What `pergola plan` found out, as text for people and as JSON. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/cost_model.h"
#include "model/memory_plan.h"
#include "model/shape_spec.h"
#include "nlohmann/json.hpp"

namespace pergola {

// One layout that was looked at.
struct PlanCandidate {
  int tensor_parallel = 1;
  int pipeline_parallel = 1;
  bool fits = false;
  std::string refused;         // why the model or the memory cannot take it
  int64_t missing_bytes = 0;   // on the fullest rank, if memory is why
  int64_t largest_batch = 0;   // sequences of the length that times are for
  double one_step_ms = 0;      // at batch 1
  int64_t chosen_batch = 0;    // what it was compared at
  double chosen_token_ms = 0;  // its predicted time per token
};

struct PlannedStep {
  bool fits = false;  // the KV holds this batch at the length of the times
  DecodeCost cost;
};

struct ComparedTime {
  PublishedTime published;
  double floor_ms = 0;  // per token
};

struct PlanReport {
  ShapeSpec shape;
  bool gpu = false;  // else this machine's CPU, with no times
  Cluster cluster;   // if gpu
  int tensor_parallel = 1;
  int pipeline_parallel = 1;
  MemoryLimits limits;
  int64_t budget_bytes = 0;  // per rank on a GPU; on the CPU what this machine has for all ranks;
                             // 0: unknown
  std::string shortened;     // see KvPlan
  std::vector<RankLayout> layouts;
  std::vector<MemoryPlan> ranks;  // by rank
  int64_t largest_batch = 0;      // sequences of the full context

  // With a GPU only.
  int64_t length = 0;  // cached tokens per sequence the times are for
  int64_t largest_batch_at_length = 0;
  std::vector<PlanCandidate> candidates;
  std::vector<PlannedStep> steps;
  PublishedRun published;
  std::vector<ComparedTime> compared;

  int64_t total_bytes() const;
};

std::string PlanText(const PlanReport& report);
nlohmann::ordered_json PlanJson(const PlanReport& report);

}  // namespace pergola
