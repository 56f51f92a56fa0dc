// CUDA's short vectors, with CUDA's sizes and alignments.
#pragma once

#define PERGOLA_VECTOR2(name, T, align) \
  struct alignas(align) name {          \
    T x, y;                             \
  };                                    \
  inline name make_##name(T x, T y) {   \
    return {x, y};                      \
  }
#define PERGOLA_VECTOR3(name, T)           \
  struct name {                            \
    T x, y, z;                             \
  };                                       \
  inline name make_##name(T x, T y, T z) { \
    return {x, y, z};                      \
  }
#define PERGOLA_VECTOR4(name, T, align)         \
  struct alignas(align) name {                  \
    T x, y, z, w;                               \
  };                                            \
  inline name make_##name(T x, T y, T z, T w) { \
    return {x, y, z, w};                        \
  }

PERGOLA_VECTOR2(char2, signed char, 2)
PERGOLA_VECTOR2(uchar2, unsigned char, 2)
PERGOLA_VECTOR2(short2, short, 4)
PERGOLA_VECTOR2(ushort2, unsigned short, 4)
PERGOLA_VECTOR2(int2, int, 8)
PERGOLA_VECTOR2(uint2, unsigned int, 8)
PERGOLA_VECTOR2(float2, float, 8)
PERGOLA_VECTOR2(longlong2, long long, 16)
PERGOLA_VECTOR2(ulonglong2, unsigned long long, 16)
PERGOLA_VECTOR2(double2, double, 16)
PERGOLA_VECTOR3(int3, int)
PERGOLA_VECTOR3(uint3, unsigned int)
PERGOLA_VECTOR3(float3, float)
PERGOLA_VECTOR4(char4, signed char, 4)
PERGOLA_VECTOR4(uchar4, unsigned char, 4)
PERGOLA_VECTOR4(short4, short, 8)
PERGOLA_VECTOR4(ushort4, unsigned short, 8)
PERGOLA_VECTOR4(int4, int, 16)
PERGOLA_VECTOR4(uint4, unsigned int, 16)
PERGOLA_VECTOR4(float4, float, 16)

#undef PERGOLA_VECTOR2
#undef PERGOLA_VECTOR3
#undef PERGOLA_VECTOR4

struct dim3 {
  unsigned int x, y, z;
  // NOLINTNEXTLINE(google-explicit-constructor): CUDA's is implicit.
  constexpr dim3(unsigned int x_in = 1, unsigned int y_in = 1, unsigned int z_in = 1)
      : x(x_in), y(y_in), z(z_in) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
