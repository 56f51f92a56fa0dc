// From a checkpoint to one rank's packed weights in the memory of its device: reads only what the
// rank needs, in bounded chunks (a transposed matrix whole), undoes GGUF's permuted rope rows,
// converts to the format asked for, and refuses weights that are not finite. Not for the forward
// pass.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/weight_format.h"
#include "worker/weights/stage_weights.h"

namespace pergola {

// Bytes read so far and in all.
using ByteProgress = std::function<void(int64_t done, int64_t total)>;

// INVALID_ARGUMENT naming the tensor if a value is NaN or Inf, of a dtype that cannot be packed, or
// (with its value) not to be held in `format`; else what Checkpoint::Read returns. `progress` may
// be empty.
absl::StatusOr<StageWeights> LoadStageWeights(const Checkpoint& checkpoint,
                                              const RankLayout& layout, Stream& stream,
                                              const ByteProgress& progress,
                                              WeightFormat format = WeightFormat::kAuto);

}  // namespace pergola
