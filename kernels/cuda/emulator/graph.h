// Graphs of the emulated runtime API: what a capture has kept. Private to the emulator.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/emulator/stream.h"

namespace pergola::emulator {

using WorkList = std::vector<Work>;

}  // namespace pergola::emulator

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.

struct CUgraph_st {
  pergola::emulator::WorkList work;
};

struct CUgraphExec_st {
  pergola::emulator::WorkList work;
  int64_t driver_bytes = 0;
};

// NOLINTEND(bugprone-reserved-identifier)
