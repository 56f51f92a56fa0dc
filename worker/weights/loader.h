// From a checkpoint to one rank's packed weights in the memory of its device: allocates them, reads
// only what the rank needs, in bounded chunks on all threads (load_pipeline.h), undoes GGUF's
// permuted rope rows, converts to the format asked for, and refuses weights that are not finite.
// Not for the forward pass.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/weight_format.h"
#include "worker/weights/load_pipeline.h"
#include "worker/weights/stage_weights.h"

namespace pergola {

// INVALID_ARGUMENT naming the tensor if a value is NaN or Inf, of a dtype that cannot be packed, or
// (with its value) not to be held in `format`; else what Checkpoint::Read returns, naming the
// tensor, or the stream's error. `progress` may be empty; `times`, if not null, says where the time
// went.
absl::StatusOr<StageWeights> LoadStageWeights(const Checkpoint& checkpoint,
                                              const RankLayout& layout, Stream& stream,
                                              const ByteProgress& progress,
                                              WeightFormat format = WeightFormat::kAuto,
                                              LoadTimes* times = nullptr,
                                              const LoadLimits& limits = {});

}  // namespace pergola
