// Stands for the CUDA toolkit's header of this name under the emulator.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/emulator/small_float.h"

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.

using __half = pergola::emulator::SmallFloat<pergola::emulator::HalfFormat>;
using __half2 = pergola::emulator::SmallFloat2<pergola::emulator::HalfFormat>;
using half = __half;
using half2 = __half2;

PERGOLA_SMALL_FLOAT_FUNCTIONS(__half, __half2)

inline __half __float2half(float v) {
  return {v};
}
inline __half __float2half_rn(float v) {
  return {v};
}
inline __half __double2half(double v) {
  return {static_cast<float>(v)};
}
inline __half __int2half_rn(int v) {
  return {v};
}
inline float __half2float(__half v) {
  return v;
}
inline unsigned short __half_as_ushort(__half v) {
  return v.bits;
}
inline short __half_as_short(__half v) {
  return static_cast<short>(v.bits);
}
inline __half __ushort_as_half(unsigned short v) {
  return __half::OfBits(v);
}
inline __half __short_as_half(short v) {
  return __half::OfBits(static_cast<uint16_t>(v));
}
inline __half2 __halves2half2(__half x, __half y) {
  return {x, y};
}
inline __half2 make_half2(__half x, __half y) {
  return {x, y};
}
inline __half2 __half2half2(__half v) {
  return {v, v};
}
inline __half2 __float2half2_rn(float v) {
  return {v, v};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {x, y};
}
inline __half2 __float22half2_rn(float2 v) {
  return {v.x, v.y};
}
inline float2 __half22float2(__half2 v) {
  return {v.x, v.y};
}
inline __half __low2half(__half2 v) {
  return v.x;
}
inline __half __high2half(__half2 v) {
  return v.y;
}

// NOLINTEND(bugprone-reserved-identifier)
