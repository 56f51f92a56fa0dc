// Rows of weights as a checkpoint has them into rows of another dtype, as PackedMatrix::PackRows
// takes them. A row is rounded whole and cut then, so that every layout holds the same values.
#pragma once

#include <cstdint>

#include "model/dtype.h"
#include "model/layout.h"

namespace pergola {

// Bytes of one converted row that covers columns `cut`.
int64_t ConvertedRowBytes(DType to, Range cut);

// Converts columns `cut` of one row of `columns` finite values. Returns the first column `to`
// cannot hold (beyond the largest number of bf16 or f16, or, of a group of int4, whose step or
// minimum is), else -1. `out` has ConvertedRowBytes.
//   bf16, f16: to nearest even.
//   int8: kernels/int8.h over the whole row.
//   fp8: kernels/fp8.h over the whole row.
//   q4_0, q4_1: QuantizeGroup over each group of 32 columns of the whole row.
int64_t ConvertRow(const float* row, int64_t columns, Range cut, DType to, uint8_t* out);

// One group of at most 32 finite values as a block of q4_0 or q4_1. Of a few ways to place its 16
// steps, each improved by least squares, the one with the smallest squared error. False if the step
// or the minimum is beyond f16.
bool QuantizeGroup(const float* x, int64_t count, DType to, uint8_t* block);

}  // namespace pergola
