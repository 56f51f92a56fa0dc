// From a checkpoint to one rank's packed weights: reads only what the rank needs, in bounded
// chunks (a transposed matrix whole), undoes GGUF's permuted rope rows, and refuses weights that
// are not finite. Not for the forward pass.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "worker/weights/stage_weights.h"

namespace pergola {

// Bytes read so far and in all.
using ByteProgress = std::function<void(int64_t done, int64_t total)>;

// INVALID_ARGUMENT naming the tensor if a value is NaN or Inf, or of a dtype that cannot be packed;
// else what Checkpoint::Read returns. `progress` may be empty.
absl::StatusOr<StageWeights> LoadStageWeights(const Checkpoint& checkpoint,
                                              const RankLayout& layout,
                                              const ByteProgress& progress);

}  // namespace pergola
