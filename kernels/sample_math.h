// The arithmetic that Sample and SampleRef share, so that they agree to the last bit. Private to
// sampling.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/counter_rng.h"
#include "kernels/sample.h"

namespace pergola {

// Weights below e^-700 are 0: nothing beside the largest, which is 1.
inline constexpr double kSmallestExponent = -700.0;
inline constexpr double kLog2E = 1.4426950408889634;
// ln 2 cut to 32 bits, so that its product with n (10 bits) is exact, and the rest.
inline constexpr double kLn2High = 0x1.62e42feep-1;
inline constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
// 1.5 * 2^52: adding it rounds to an integer.
inline constexpr double kRoundMagic = 0x1.8p52;
// 1/13!, 1/12!, ..., 1/2!, 1, 1: the remainder on |r| <= ln(2)/2 is below 5e-18.
inline constexpr double kExpTaylor[14] = {1.0 / 6227020800,
                                          1.0 / 479001600,
                                          1.0 / 39916800,
                                          1.0 / 3628800,
                                          1.0 / 362880,
                                          1.0 / 40320,
                                          1.0 / 5040,
                                          1.0 / 720,
                                          1.0 / 120,
                                          1.0 / 24,
                                          1.0 / 6,
                                          0.5,
                                          1.0,
                                          1.0};

// e^x for x <= 0, in multiplications and additions only (no fused ones), so that scalar and vector
// code agree.
inline double SoftmaxWeight(double x) {
  if (!(x >= kSmallestExponent)) return 0.0;
  const double shifted = x * kLog2E + kRoundMagic;
  const double n = shifted - kRoundMagic;
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double p = kExpTaylor[0];
  for (int i = 1; i < 14; ++i) p = p * r + kExpTaylor[i];
  uint64_t bits, exponent;
  std::memcpy(&bits, &p, sizeof(bits));
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  bits += exponent << 52;  // the low bits of `shifted` are n
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}

inline double FoldEight(const double* lanes) {
  const double a = lanes[0] + lanes[4], b = lanes[1] + lanes[5];
  const double c = lanes[2] + lanes[6], d = lanes[3] + lanes[7];
  return (a + c) + (b + d);
}

inline bool MaskAllows(const uint8_t* mask, int64_t id) {
  return mask == nullptr || (mask[id / 8] >> (id % 8) & 1) != 0;
}

// Candidate `id`'s value in the Gumbel-max draw.
inline double GumbelScore(const SampleRow& row, float logit, int32_t id) {
  const double u = UniformDraw(row.seed, row.index, row.position, static_cast<uint32_t>(id));
  return static_cast<double>(logit) / static_cast<double>(row.temperature) - std::log(-std::log(u));
}

}  // namespace pergola
