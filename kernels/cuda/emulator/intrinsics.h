// CUDA's built-in functions of one thread, by the meaning the CUDA C++ programming guide gives
// them. The fast ones (__expf) are the exact ones here: bounds of tests must leave room for both.
#pragma once

#include <vector_types.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.

namespace pergola::emulator {
template <typename To, typename From>
To BitsAs(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &value, sizeof(to));
  return to;
}
// What a float becomes as an integer: out of range the nearest, NaN 0 (PTX cvt).
template <typename I>
I ToInteger(double value) {
  if (std::isnan(value)) return 0;
  if (value <= static_cast<double>(std::numeric_limits<I>::min())) {
    return std::numeric_limits<I>::min();
  }
  if (value >= static_cast<double>(std::numeric_limits<I>::max())) {
    return std::numeric_limits<I>::max();
  }
  return static_cast<I>(value);
}
}  // namespace pergola::emulator

// Loads with cache hints, and what they are hints for.
template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
template <typename T>
void __stcg(T* p, T value) {
  *p = value;
}

inline float __int_as_float(int v) {
  return pergola::emulator::BitsAs<float>(v);
}
inline float __uint_as_float(unsigned v) {
  return pergola::emulator::BitsAs<float>(v);
}
inline int __float_as_int(float v) {
  return pergola::emulator::BitsAs<int>(v);
}
inline unsigned __float_as_uint(float v) {
  return pergola::emulator::BitsAs<unsigned>(v);
}
inline long long __double_as_longlong(double v) {
  return pergola::emulator::BitsAs<long long>(v);
}
inline double __longlong_as_double(long long v) {
  return pergola::emulator::BitsAs<double>(v);
}
inline int __float2int_rn(float v) {
  return pergola::emulator::ToInteger<int>(std::nearbyint(v));
}
inline int __float2int_rz(float v) {
  return pergola::emulator::ToInteger<int>(std::trunc(v));
}
inline int __float2int_rd(float v) {
  return pergola::emulator::ToInteger<int>(std::floor(v));
}
inline int __float2int_ru(float v) {
  return pergola::emulator::ToInteger<int>(std::ceil(v));
}
inline unsigned __float2uint_rn(float v) {
  return pergola::emulator::ToInteger<unsigned>(std::nearbyint(v));
}
inline float __int2float_rn(int v) {
  return static_cast<float>(v);
}
inline float __uint2float_rn(unsigned v) {
  return static_cast<float>(v);
}
inline float __double2float_rn(double v) {
  return static_cast<float>(v);
}

inline float rsqrtf(float x) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __exp10f(float x) {
  return static_cast<float>(std::pow(10.0, x));
}
inline float exp10f(float x) {
  return static_cast<float>(std::pow(10.0, x));
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __log2f(float x) {
  return std::log2(x);
}
inline float __sinf(float x) {
  return std::sin(x);
}
inline float __cosf(float x) {
  return std::cos(x);
}
inline float __powf(float x, float y) {
  return std::pow(x, y);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float fdividef(float x, float y) {
  return x / y;
}
inline float __fadd_rn(float x, float y) {
  return x + y;
}
inline float __fsub_rn(float x, float y) {
  return x - y;
}
inline float __fmul_rn(float x, float y) {
  return x * y;
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline float __frcp_rn(float x) {
  return 1.0F / x;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline float __frsqrt_rn(float x) {
  return rsqrtf(x);
}
inline float __fmaf_rn(float x, float y, float z) {
  return std::fma(x, y, z);
}
inline double __dadd_rn(double x, double y) {
  return x + y;
}
inline double __dsub_rn(double x, double y) {
  return x - y;
}
inline double __dmul_rn(double x, double y) {
  return x * y;
}
inline double __ddiv_rn(double x, double y) {
  return x / y;
}
inline double __fma_rn(double x, double y, double z) {
  return std::fma(x, y, z);
}
inline float __saturatef(float x) {
  return std::isnan(x) ? 0.0F : std::clamp(x, 0.0F, 1.0F);
}

// CUDA's max and min take mixed arithmetic types; of a float and a NaN they return the float.
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) {
    return std::fmax(static_cast<T>(a), static_cast<T>(b));
  } else {
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
  }
}
template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) {
    return std::fmin(static_cast<T>(a), static_cast<T>(b));
  } else {
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
  }
}

inline int __popc(unsigned v) {
  return __builtin_popcount(v);
}
inline int __popcll(unsigned long long v) {
  return __builtin_popcountll(v);
}
inline int __clz(int v) {
  return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v));
}
inline int __clzll(long long v) {
  return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v));
}
inline int __ffs(int v) {
  return __builtin_ffs(v);
}
inline int __ffsll(long long v) {
  return __builtin_ffsll(v);
}
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __mulhi(int a, int b) {
  return static_cast<int>(static_cast<int64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  return static_cast<unsigned>(both << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  return static_cast<unsigned>(both >> (shift & 31));
}
// Byte i of the result is byte s & 7 of (y, x), s being nibble i of the selector; the nibble's top
// bit asks for that byte's sign in all eight bits.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned s = selector >> (4 * i) & 15;
    auto byte = static_cast<unsigned>(both >> (8 * (s & 7)) & 0xff);
    if ((s & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    r |= byte << (8 * i);
  }
  return r;
}
inline int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);  // wraps as the hardware's
  for (int i = 0; i < 4; ++i) {
    const int product = static_cast<int8_t>(static_cast<unsigned>(a) >> (8 * i) & 0xff) *
                        static_cast<int8_t>(static_cast<unsigned>(b) >> (8 * i) & 0xff);
    sum += static_cast<unsigned>(product);
  }
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
  return c;
}
// Byte by byte: a + b and a - b, modulo 256.
inline unsigned __vadd4(unsigned a, unsigned b) {
  unsigned r = 0;
  for (int i = 0; i < 32; i += 8) r |= (((a >> i & 0xff) + (b >> i & 0xff)) & 0xff) << i;
  return r;
}
inline unsigned __vsub4(unsigned a, unsigned b) {
  unsigned r = 0;
  for (int i = 0; i < 32; i += 8) r |= (((a >> i & 0xff) - (b >> i & 0xff)) & 0xff) << i;
  return r;
}

// One thread of the grid runs at a time, so plain code is atomic. All return the old value.
namespace pergola::emulator {
template <typename T>
struct NoDeduction {
  using type = T;
};
}  // namespace pergola::emulator
template <typename T>
T atomicAdd(T* p, typename pergola::emulator::NoDeduction<T>::type v) {
  const T old = *p;
  if constexpr (std::is_same_v<T, int>) {
    *p = static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(v));
  } else {
    *p = static_cast<T>(old + v);
  }
  return old;
}
template <typename T>
T atomicSub(T* p, typename pergola::emulator::NoDeduction<T>::type v) {
  const T old = *p;
  *p = static_cast<T>(old - v);
  return old;
}
template <typename T>
T atomicMax(T* p, typename pergola::emulator::NoDeduction<T>::type v) {
  static_assert(std::is_integral_v<T>);
  const T old = *p;
  if (old < v) *p = v;
  return old;
}
template <typename T>
T atomicMin(T* p, typename pergola::emulator::NoDeduction<T>::type v) {
  static_assert(std::is_integral_v<T>);
  const T old = *p;
  if (v < old) *p = v;
  return old;
}
template <typename T>
T atomicExch(T* p, typename pergola::emulator::NoDeduction<T>::type v) {
  const T old = *p;
  *p = v;
  return old;
}
template <typename T>
T atomicCAS(T* p, typename pergola::emulator::NoDeduction<T>::type compare,
            typename pergola::emulator::NoDeduction<T>::type v) {
  const T old = *p;
  if (old == compare) *p = v;
  return old;
}
template <typename T>
T atomicOr(T* p, typename pergola::emulator::NoDeduction<T>::type v) {
  const T old = *p;
  *p = old | v;
  return old;
}
template <typename T>
T atomicAnd(T* p, typename pergola::emulator::NoDeduction<T>::type v) {
  const T old = *p;
  *p = old & v;
  return old;
}
// Counts to `limit`, then begins at 0 again.
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  const unsigned old = *p;
  *p = old >= limit ? 0 : old + 1;
  return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// NOLINTEND(bugprone-reserved-identifier)
