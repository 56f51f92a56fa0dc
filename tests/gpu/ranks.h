// Goldens through groups of ranks that are processes on one GPU.
#pragma once

namespace pergola {

// Results of part "ranks", one per layout. False if one is wrong. Must run before this process
// touches CUDA. `tiny`: two layouts.
bool CheckRanks(bool tiny);

}  // namespace pergola
