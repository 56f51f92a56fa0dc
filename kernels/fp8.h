// Rows in e4m3: the one formula by which weights (per output row, at load) and tokens (per token,
// at run time, where a GPU multiplies many of them) become fp8 under `--dtype fp8`.
//
//   m = max |x_k|, s = m / 448, q_k = e4m3(x_k * (448 / m)) to nearest, ties to even; x_k is s q_k
//
// |x_k - s q_k| <= (2^-4 + 2^-20) |x_k| + (2^-10 + 2^-20) s: half a place of three bits of
// mantissa, or half of the smallest number 2^-9, and the two roundings before it. There are no
// outliers: the places shrink with the value. A row whose m is below 2^-96 becomes zeros (s = 0),
// so that 448 / m is always a number. A token with a NaN or an infinity gives NaN everywhere.
#pragma once

#include <cstdint>

#include "model/dtype.h"

namespace pergola {

inline constexpr float kSmallestFp8Row = 0x1.0p-96F;

// Steps of a row whose largest value is `most`.
struct Fp8Steps {
  float scale = 0;    // s
  float inverse = 0;  // 448 / m
};
inline Fp8Steps Fp8StepsOf(float most) {
  if (!(most >= kSmallestFp8Row)) return {};
  return {most / kMostE4M3, kMostE4M3 / most};
}

// Of a whole row, NaN aside; and q of some of its columns.
Fp8Steps Fp8StepsOfRow(const float* x, int64_t count);
void QuantizeFp8(const float* x, int64_t count, const Fp8Steps& steps, uint8_t* q);

}  // namespace pergola
