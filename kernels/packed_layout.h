// Where a packed matrix keeps the weight of output `o` and input `k`. Private to PackedMatrix and
// the matmul kernels.
//
// Outputs are cut into panels of 32, the last one padded with zeros; a panel holds all of K,
// ascending. An output is a vector lane, so its sum runs down one lane whatever the width of the
// vectors:
//   f32        [K][32]                      one f32 each
//   f16        [K][32]                      one f16 each
//   bf16       [ceil(K/2)][32][2]           pairs of k in one 32-bit lane: shift and mask give two
//   f32 vectors, and dot
//                                           product instructions of pairs (VDPBF16PS, AMX) read the
//                                           same bytes
//   quantised  [blocks of K]        a block of the file's bytes for each output: its f16 numbers
//                                   [count][32], then the rest of it as words [words][32] of 32
//                                   bits, in the file's order
//   int8       scales f32 [32], sums of the weights i32 [32], then
//              [ceil(K/4)][32][4]   int8 of four k in one 32-bit lane, as VPDPBUSD reads them
#pragma once

#include <cstdint>

#include "model/dtype.h"
#include "model/packed_size.h"

namespace pergola {

// Quantised weights are decoded this many k at a time, whatever the size of a block.
inline constexpr int64_t kQuantPiece = 32;

// Bytes before the words of a (panel, block): its f16 numbers. A multiple of a cache line, as is
// the whole.
inline int64_t QuantHeaderBytes(DType dtype) {
  return HalvesOf(dtype).count * 2 * kPanelColumns;
}

inline int64_t QuantPanelBlockBytes(DType dtype) {
  return kPanelColumns * BlockBytes(dtype);
}

}  // namespace pergola
