// The SIMD version of Matmul for the stream's target. Shapes have been checked, rows and outputs
// are not 0.
#pragma once

#include "kernels/matmul.h"

namespace pergola {

void MatmulCpu(Stream& stream, const MatmulArgs& args);

}  // namespace pergola
