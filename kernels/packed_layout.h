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
//   quantised  [blocks of 32 k], each       scales f16 [32], for q4_1 minima f16 [32], then
//     q8_0     [8][32][4]                   int8 of four k in one 32-bit lane (as VPDPBUSD reads
//     them) q4_0/1   [4][32] x 32 bits            nibbles of eight k: bits 8b..8b+3 are k = b, bits
//     8b+4.. are k = 4 + b
//   int8       scales f32 [32], sums of the weights i32 [32], then
//              [ceil(K/4)][32][4]            as q8_0, for all of K
#pragma once

#include <cstdint>

#include "model/dtype.h"
#include "model/packed_size.h"

namespace pergola {

inline constexpr int64_t kQuantBlock = 32;

// Bytes before the quants of a (panel, block): its scales and minima.
inline int64_t QuantHeaderBytes(DType dtype) {
  return dtype == DType::kQ4_1 ? 4 * kPanelColumns : 2 * kPanelColumns;
}

// Bytes of one block of 32 k of one panel: 1088, 576 or 640. Multiples of a cache line.
inline int64_t QuantPanelBlockBytes(DType dtype) {
  return kPanelColumns * BlockBytes(dtype);
}

}  // namespace pergola
