// What a group says of itself when it attaches.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/text_parts.h"
#include "pergola/v1/worker.pb.h"
#include "worker/comm/group.h"
#include "worker/step/stage_executor.h"
#include "worker/worker_options.h"

namespace pergola {

// One rank's part of the numerics id: what it loaded and how it computes.
std::string RankNumerics(const std::string& dtypes, const std::string& device);

// What must be equal for equal bits (DESIGN I4): fingerprint, layout, every rank's numerics, and
// the numerics version.
std::string NumericsId(const std::string& fingerprint, int tensor_parallel,
                       const std::vector<Range>& stages,
                       const std::vector<std::string>& rank_numerics);

struct HelloFacts {
  const Checkpoint* checkpoint = nullptr;
  const TextParts* text = nullptr;
  std::string fingerprint;
  std::vector<std::string> rank_numerics;  // by rank
  std::vector<RankPlace> places;           // by rank
  ExecutorInfo info;                       // of rank 0
  int64_t block_count = 0;                 // the minimum over the ranks
  bool bitwise = true;                     // the CPU's promise (DESIGN I4)
};

absl::StatusOr<v1::Hello> MakeHello(const WorkerOptions& options, const HelloFacts& facts);

}  // namespace pergola
