// The goldens of every family on the GPU: against transformers' logits and greedy tokens, and
// against the CPU in the same program.
#pragma once

namespace pergola {

// Results of part "parity", one per family and precision, each after all its goldens. False if a
// bound was broken or an executor failed. `tiny`: a few goldens.
bool CheckParity(bool tiny);

}  // namespace pergola
