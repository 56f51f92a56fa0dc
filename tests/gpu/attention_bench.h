// Speed of attention: prompts as TFLOP/s, single tokens as GB/s of keys and values beside the read
// bandwidth.
#pragma once

#include "tests/gpu/roofs.h"

namespace pergola {

// Results of part "attention".
void BenchAttention(const Roofs& roofs, bool tiny);

}  // namespace pergola
