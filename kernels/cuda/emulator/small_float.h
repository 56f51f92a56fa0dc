// CUDA's __half and __nv_bfloat16: 16 bits, conversions to nearest even, each operation in f32 and
// then rounded: the hardware's bits, for f32 has over twice their mantissa (Figueroa, "When is
// double rounding innocuous?", 1995). The hardware's NaN is 0x7fff, and so is ours.
#pragma once

#include <vector_types.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/emulator/intrinsics.h"

namespace pergola::emulator {

struct HalfFormat {
  static float Decode(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    // The exponent's bias differs by 112; the product also makes subnormals right.
    const float scaled = BitsAs<float>(static_cast<uint32_t>(bits & 0x7fff) << 13) * 0x1.0p112F;
    const uint32_t special = scaled >= 65536.0F ? 0x7f800000 : 0;
    return BitsAs<float>(BitsAs<uint32_t>(scaled) | special | sign);
  }
  static uint16_t Encode(float value) {
    const auto bits = BitsAs<uint32_t>(value);
    const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    const int exponent = static_cast<int>(magnitude >> 23) - 127;
    if (exponent > 15) return static_cast<uint16_t>(sign | 0x7c00);
    if (exponent < -25) return sign;
    // The value is mantissa * 2^(exponent - 23); its last place in f16 is 2^(max(e, -14) - 10).
    const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    const int drop = exponent >= -14 ? 13 : -1 - exponent;
    const uint32_t kept = mantissa >> drop, rest = mantissa & ((1U << drop) - 1);
    const uint32_t half = 1U << (drop - 1);
    const uint32_t rounded = kept + (rest > half || (rest == half && (kept & 1) != 0) ? 1 : 0);
    // A carry out of the mantissa goes into the exponent, as it must; the implicit bit counts one.
    const uint32_t base = exponent >= -14 ? static_cast<uint32_t>(exponent + 14) << 10 : 0;
    return static_cast<uint16_t>(sign | (base + rounded));
  }
};

struct BFloat16Format {
  static float Decode(uint16_t bits) { return BitsAs<float>(static_cast<uint32_t>(bits) << 16); }
  static uint16_t Encode(float value) {
    const auto bits = BitsAs<uint32_t>(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    const uint32_t kept = bits >> 16, rest = bits & 0xffff;
    const bool up = rest > 0x8000 || (rest == 0x8000 && (kept & 1) != 0);
    return static_cast<uint16_t>(kept + (up ? 1 : 0));
  }
};

// Assigned from any number and read as a float, as CUDA's types; trivial, so that arrays of it can
// be shared memory.
template <typename Format>
struct SmallFloat {
  uint16_t bits;

  SmallFloat() = default;
  template <typename N, typename = std::enable_if_t<std::is_arithmetic_v<N>>>
  // NOLINTNEXTLINE(google-explicit-constructor): CUDA's is implicit.
  SmallFloat(N value) : bits(Format::Encode(static_cast<float>(value))) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  operator float() const { return Format::Decode(bits); }

  static SmallFloat OfBits(int from) {
    SmallFloat v;
    v.bits = static_cast<uint16_t>(from);
    return v;
  }
  SmallFloat& operator+=(SmallFloat b) { return *this = *this + b; }
  SmallFloat& operator-=(SmallFloat b) { return *this = *this - b; }
  SmallFloat& operator*=(SmallFloat b) { return *this = *this * b; }
  SmallFloat& operator/=(SmallFloat b) { return *this = *this / b; }
  SmallFloat operator-() const { return OfBits(bits ^ 0x8000); }
  friend SmallFloat operator+(SmallFloat a, SmallFloat b) { return {float(a) + float(b)}; }
  friend SmallFloat operator-(SmallFloat a, SmallFloat b) { return {float(a) - float(b)}; }
  friend SmallFloat operator*(SmallFloat a, SmallFloat b) { return {float(a) * float(b)}; }
  friend SmallFloat operator/(SmallFloat a, SmallFloat b) { return {float(a) / float(b)}; }
  friend bool operator==(SmallFloat a, SmallFloat b) { return float(a) == float(b); }
  friend bool operator!=(SmallFloat a, SmallFloat b) { return float(a) != float(b); }
  friend bool operator<(SmallFloat a, SmallFloat b) { return float(a) < float(b); }
  friend bool operator>(SmallFloat a, SmallFloat b) { return float(a) > float(b); }
  friend bool operator<=(SmallFloat a, SmallFloat b) { return float(a) <= float(b); }
  friend bool operator>=(SmallFloat a, SmallFloat b) { return float(a) >= float(b); }
};

template <typename Format>
struct alignas(4) SmallFloat2 {
  SmallFloat<Format> x, y;

  SmallFloat2() = default;
  SmallFloat2(SmallFloat<Format> x_in, SmallFloat<Format> y_in) : x(x_in), y(y_in) {}
  friend SmallFloat2 operator+(SmallFloat2 a, SmallFloat2 b) { return {a.x + b.x, a.y + b.y}; }
  friend SmallFloat2 operator-(SmallFloat2 a, SmallFloat2 b) { return {a.x - b.x, a.y - b.y}; }
  friend SmallFloat2 operator*(SmallFloat2 a, SmallFloat2 b) { return {a.x * b.x, a.y * b.y}; }
};

// a b + c, exact in the product; rounded to f32 and then to the format.
template <typename Format>
SmallFloat<Format> FusedMultiplyAdd(SmallFloat<Format> a, SmallFloat<Format> b,
                                    SmallFloat<Format> c) {
  return SmallFloat<Format>(std::fma(float(a), float(b), float(c)));
}
template <typename Format>
SmallFloat<Format> Larger(SmallFloat<Format> a, SmallFloat<Format> b) {
  return SmallFloat<Format>(std::fmax(float(a), float(b)));
}
template <typename Format>
SmallFloat<Format> Smaller(SmallFloat<Format> a, SmallFloat<Format> b) {
  return SmallFloat<Format>(std::fmin(float(a), float(b)));
}

}  // namespace pergola::emulator

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.

// The functions that CUDA overloads for both types.
#define PERGOLA_SMALL_FLOAT_FUNCTIONS(T, T2)               \
  inline T __hadd(T a, T b) {                              \
    return a + b;                                          \
  }                                                        \
  inline T __hsub(T a, T b) {                              \
    return a - b;                                          \
  }                                                        \
  inline T __hmul(T a, T b) {                              \
    return a * b;                                          \
  }                                                        \
  inline T __hdiv(T a, T b) {                              \
    return a / b;                                          \
  }                                                        \
  inline T __hneg(T a) {                                   \
    return -a;                                             \
  }                                                        \
  inline T __habs(T a) {                                   \
    return T::OfBits(a.bits & 0x7fff);                     \
  }                                                        \
  inline T __hfma(T a, T b, T c) {                         \
    return pergola::emulator::FusedMultiplyAdd(a, b, c);   \
  }                                                        \
  inline T __hmax(T a, T b) {                              \
    return pergola::emulator::Larger(a, b);                \
  }                                                        \
  inline T __hmin(T a, T b) {                              \
    return pergola::emulator::Smaller(a, b);               \
  }                                                        \
  inline bool __heq(T a, T b) {                            \
    return a == b;                                         \
  }                                                        \
  inline bool __hgt(T a, T b) {                            \
    return a > b;                                          \
  }                                                        \
  inline bool __hge(T a, T b) {                            \
    return a >= b;                                         \
  }                                                        \
  inline bool __hlt(T a, T b) {                            \
    return a < b;                                          \
  }                                                        \
  inline bool __hle(T a, T b) {                            \
    return a <= b;                                         \
  }                                                        \
  inline bool __hisnan(T a) {                              \
    return std::isnan(float(a));                           \
  }                                                        \
  inline T2 __hadd2(T2 a, T2 b) {                          \
    return a + b;                                          \
  }                                                        \
  inline T2 __hsub2(T2 a, T2 b) {                          \
    return a - b;                                          \
  }                                                        \
  inline T2 __hmul2(T2 a, T2 b) {                          \
    return a * b;                                          \
  }                                                        \
  inline T2 __hfma2(T2 a, T2 b, T2 c) {                    \
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; \
  }                                                        \
  inline T2 __hmax2(T2 a, T2 b) {                          \
    return {__hmax(a.x, b.x), __hmax(a.y, b.y)};           \
  }                                                        \
  inline T2 __hmin2(T2 a, T2 b) {                          \
    return {__hmin(a.x, b.x), __hmin(a.y, b.y)};           \
  }                                                        \
  inline T2 __hneg2(T2 a) {                                \
    return {-a.x, -a.y};                                   \
  }                                                        \
  inline float __low2float(T2 a) {                         \
    return a.x;                                            \
  }                                                        \
  inline float __high2float(T2 a) {                        \
    return a.y;                                            \
  }                                                        \
  inline T atomicAdd(T* p, T v) {                          \
    const T old = *p;                                      \
    *p = old + v;                                          \
    return old;                                            \
  }

// NOLINTEND(bugprone-reserved-identifier)
