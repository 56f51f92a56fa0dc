// Finds NaN and Inf in weights as they lie in a file, so that a damaged checkpoint is refused by
// name at load and not met as nonsense text later.
#pragma once

#include <cstdint>

#include "model/dtype.h"

namespace pergola {

// The index of the first value that is not finite among `values` consecutive values (a multiple of
// BlockValues) of `dtype` at `source`, or -1. A quantised block is not finite if its scale or
// minimum is not: then the index of the block's first value. Any alignment.
int64_t FirstNonFinite(DType dtype, const uint8_t* source, int64_t values);

}  // namespace pergola
