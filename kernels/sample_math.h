// The arithmetic that Sample and SampleRef share, so that they agree to the last bit. Private to
// sampling.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

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

// Steps 1 to 3 of sample.h for one logit. A forbidden id stays forbidden, and no finite logit
// leaves f32.
inline float WithinF32(float value) {
  return std::clamp(value, std::numeric_limits<float>::lowest(), std::numeric_limits<float>::max());
}
inline bool IsForbidden(float logit) {
  return logit == -std::numeric_limits<float>::infinity();
}
inline float AddBias(float logit, float bias) {
  if (IsForbidden(logit) || IsForbidden(bias)) return -std::numeric_limits<float>::infinity();
  return WithinF32(logit + bias);
}
inline float PenaliseRepetition(float logit, float penalty) {
  if (IsForbidden(logit) || penalty == 0 || penalty == 1) return logit;
  return WithinF32(logit > 0 ? logit / penalty : logit * penalty);
}
inline float PenaliseCount(float logit, int64_t count, const SampleRow& row) {
  if (IsForbidden(logit) || count == 0) return logit;
  const float by_frequency = static_cast<float>(count) * row.frequency_penalty;
  return WithinF32(WithinF32(logit - by_frequency) - row.presence_penalty);
}

// x of sample.h.
inline double Exponent(float logit, float largest, double inverse_temperature) {
  return (static_cast<double>(logit) - static_cast<double>(largest)) * inverse_temperature;
}
// weight * x: an id without weight adds nothing, however far it is.
inline double WeightedExponent(double weight, double x) {
  return weight == 0 ? 0.0 : weight * x;
}

inline float Logprob(float logit, float largest, double log_total) {
  return static_cast<float>((static_cast<double>(logit) - static_cast<double>(largest)) -
                            log_total);
}

// Candidate `id`'s value in the Gumbel-max draw.
inline double GumbelScore(const SampleRow& row, float logit, int32_t id) {
  const double u = UniformDraw(row.seed, row.index, row.position, static_cast<uint32_t>(id));
  return static_cast<double>(logit) / static_cast<double>(row.temperature) - std::log(-std::log(u));
}

}  // namespace pergola
