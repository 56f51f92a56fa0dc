// Stands for the CUDA toolkit's header of this name under the emulator.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/emulator/small_float.h"

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.

using __nv_bfloat16 = pergola::emulator::SmallFloat<pergola::emulator::BFloat16Format>;
using __nv_bfloat162 = pergola::emulator::SmallFloat2<pergola::emulator::BFloat16Format>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

PERGOLA_SMALL_FLOAT_FUNCTIONS(__nv_bfloat16, __nv_bfloat162)

inline __nv_bfloat16 __float2bfloat16(float v) {
  return {v};
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  return {v};
}
inline __nv_bfloat16 __double2bfloat16(double v) {
  return {static_cast<float>(v)};
}
inline __nv_bfloat16 __int2bfloat16_rn(int v) {
  return {v};
}
inline float __bfloat162float(__nv_bfloat16 v) {
  return v;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) {
  return v.bits;
}
inline short __bfloat16_as_short(__nv_bfloat16 v) {
  return static_cast<short>(v.bits);
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
  return __nv_bfloat16::OfBits(v);
}
inline __nv_bfloat16 __short_as_bfloat16(short v) {
  return __nv_bfloat16::OfBits(static_cast<uint16_t>(v));
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
  return {x, y};
}
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 v) {
  return {v, v};
}
inline __nv_bfloat162 __float2bfloat162_rn(float v) {
  return {v, v};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {x, y};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
  return {v.x, v.y};
}
inline float2 __bfloat1622float2(__nv_bfloat162 v) {
  return {v.x, v.y};
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) {
  return v.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) {
  return v.y;
}

// NOLINTEND(bugprone-reserved-identifier)
