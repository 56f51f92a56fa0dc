// The scans over a whole vocabulary that sampling needs, in SIMD. Ids that are not allowed hold
// minus infinity.
#pragma once

#include <cstdint>

#include "kernels/sample.h"
#include "kernels/stream.h"

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

// weights[i] = SoftmaxWeight((logits[i] - largest) * inverse), bit for bit.
void SoftmaxWeights(CpuTarget target, const float* logits, int64_t values, double largest,
                    double inverse, double* weights);

}  // namespace pergola
