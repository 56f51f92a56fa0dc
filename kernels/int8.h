// Rows in eight bits: the one formula by which weights (per output row, at load) and activations
// (per token, at run time) become int8 under `--dtype int8`.
//
//   m = max |x_k|, s = m / 127, q_k = round(x_k * (127 / m)) to nearest, ties to even; x_k is s q_k
//
// |x_k - s q_k| <= s (1/2 + 2^-15): half a step, and the two roundings before it to an integer. A
// row whose m is below 2^-96 becomes zeros (s = 0), so that 127 / m is always a number.
#pragma once

#include <cmath>
#include <cstdint>

namespace pergola {

// Activations with |x| above a limit, and those that are no numbers, are outliers: they stay f32.
// Dettmers et al., LLM.int8(), arXiv:2208.07339, section 3.2, take 6. Tokens whose values are small
// have theirs below it, so the limit is 6 or five times the root mean square of the values within
// 6, whichever is less (of SmolLM2 135M it halves the error: docs/quantization.md).
inline constexpr float kInt8Outlier = 6.0F;
inline constexpr float kInt8OutlierRms = 5.0F;
// Squares are summed in so many parts, k in part k mod 16, then the parts in order.
inline constexpr int64_t kInt8SumParts = 16;
inline float Int8Limit(float squares, int64_t count) {
  // Below, squares may have vanished.
  if (!(squares > 0x1.0p-100F)) return kInt8Outlier;
  const float limit = kInt8OutlierRms * std::sqrt(squares / static_cast<float>(count));
  return limit < kInt8Outlier ? limit : kInt8Outlier;
}
// The limit of a token.
float Int8LimitOf(const float* x, int64_t count);

inline constexpr float kSmallestInt8Row = 0x1.0p-96F;

// Steps of a row whose largest value is `most`.
struct Int8Steps {
  float scale = 0;    // s
  float inverse = 0;  // 127 / m
};
inline Int8Steps StepsOf(float most) {
  if (!(most >= kSmallestInt8Row)) return {};
  return {most / 127.0F, 127.0F / most};
}

// q of one value. |x * inverse| is below 2^22, where adding 1.5 * 2^23 rounds to an integer.
inline int8_t ToInt8(float x, float inverse) {
  constexpr float kMagic = 12582912.0F;
  return static_cast<int8_t>(x * inverse + kMagic - kMagic);
}

inline bool IsInt8Outlier(float x, float limit) {
  return !(x <= limit && x >= -limit);
}

// Of weights: of a whole row of finite values, and q of some of its columns.
Int8Steps StepsOfRow(const float* x, int64_t count);
void QuantizeInt8(const float* x, int64_t count, const Int8Steps& steps, int8_t* q);

// Of a token: outliers beyond `limit` do not count, their q is 0. Returns s.
float QuantizeInt8Token(const float* x, int64_t count, float limit, int8_t* q);

}  // namespace pergola
