// The two ends of a group towards its coordinator: where plans come from (rank 0) and where results
// go (first rank of the last stage). Implemented over gRPC (coordinator_link.h, results_link.h) and
// by fakes.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

// Called from rank 0's main thread.
class PlanSource {
 public:
  enum class Next { kNone, kPlan, kEnd };
  // Rank 0 lets the others know this often that it lives while it has no plan.
  static constexpr int kTickMs = 1000;

  virtual ~PlanSource() = default;
  // kPlan: the oldest plan that waits is in `plan`. kNone: none waits; with `wait`, none came
  // within kTickMs either. kEnd: the group ends in order. An error ends the group: no coordinator
  // for too long, or one that refuses this group.
  virtual absl::StatusOr<Next> Take(bool wait, v1::StepPlan* plan) = 0;
};

// Called from the main thread of the last stage's first rank.
class ResultSink {
 public:
  virtual ~ResultSink() = default;
  // Never blocks. Results that nobody can be given are dropped.
  virtual void Push(v1::StepResult result) = 0;
};

}  // namespace pergola
