// A kernel that reads memory and does nothing else: what a decode step can reach at most.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"

namespace pergola {

// Reads `bytes` (a multiple of 16) from `data` once. `out`: device memory, 4 bytes.
void ReadMemoryCuda(const CudaContext& context, const void* data, int64_t bytes, uint32_t* out);

}  // namespace pergola
