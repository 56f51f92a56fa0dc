// The scans over a whole vocabulary that sampling needs, in SIMD. Ids that are not allowed hold
// minus infinity.
#pragma once

#include <cstdint>

#include "kernels/cpu_stream.h"
#include "kernels/sample.h"

namespace pergola {

struct LogitScan {
  float largest;  // of the values that are not NaN; minus infinity if there is none
  bool valid;     // no NaN and no plus infinity
};
LogitScan ScanLogits(CpuTarget target, const float* logits, int64_t values);

// The lowest index >= begin with logits[index] > bound, or >= bound; `values` if there is none.
int64_t NextAbove(CpuTarget target, const float* logits, int64_t begin, int64_t values,
                  float bound);
int64_t NextAtLeast(CpuTarget target, const float* logits, int64_t begin, int64_t values,
                    float bound);

// All indices with low <= logits[index] < high, ascending, into `ids`, which has room for
// kCollectPadding more than there are; their number.
inline constexpr int64_t kCollectPadding = 16;
int64_t CollectRange(CpuTarget target, const float* logits, int64_t values, float low, float high,
                     int32_t* ids);

// uniform[i] = UniformDraw(seed, index, position, ids[i]), bit for bit.
void UniformDraws(CpuTarget target, uint64_t seed, uint32_t index, uint32_t position,
                  const int32_t* ids, int64_t count, double* uniform);

// weights[i] = SoftmaxWeight((logits[i] - largest) * inverse), bit for bit.
void SoftmaxWeights(CpuTarget target, const float* logits, int64_t values, double largest,
                    double inverse, double* weights);

// Adds those weights, ids ascending, to lanes[id % 8], and if `weighted` weight * exponent to
// weighted_lanes[id % 8].
void WeightLanes(CpuTarget target, const float* logits, int64_t values, double largest,
                 double inverse, bool weighted, double* lanes, double* weighted_lanes);

}  // namespace pergola
