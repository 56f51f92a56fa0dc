// Products of few rows by every weight format: bytes per second of the weights beside the read
// bandwidth.
#pragma once

#include "tests/gpu/roofs.h"

namespace pergola {

// Results of part "product", one per format.
void BenchProducts(const Roofs& roofs, bool tiny);

}  // namespace pergola
