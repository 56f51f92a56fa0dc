// GGUF's block formats, decoded value by value: what a block's bytes mean. Scalar: the
// specification that the packed decoders of kernels/ are tested against.
//
// Blocks of 32 (d, m: f16; q: quants of the width named; value i and value 16 + i of a nibble
// format share byte i, low nibble first):
//   q8_0    d q, q signed           q4_0    d (q - 8)          q5_0  d (q - 16), fifth bits in a
//   word iq4_nl  d table[q], 4 bits      q4_1    d q + m            q5_1  d q + m
// K-quants, blocks of 256 with small integer scales s (and minima t) of 32 or 16 values each:
//   q2_k    d s q - m t, of 16      q4_k, q5_k  d s q - m t, of 32
//   q3_k    d s (q - 4), of 16      q6_k        d s (q - 32), of 16, s signed
// Every product is exact in f32 (at most 24 bits), so a value has at most one rounding: that of the
// minimum's sum.
#pragma once

#include <cstdint>

#include "model/dtype.h"

namespace pergola {

// iq4_nl's values.
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                          1,    13,   25,  38,  53,  69,  89,  113};

// Decodes one block of a quantised dtype to BlockValues(dtype) values.
void DecodeQuantBlock(DType dtype, const uint8_t* block, float* out);

}  // namespace pergola
