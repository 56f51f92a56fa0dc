// From a tensor's dtype to the C++ type of its values, and four values at a time.
#pragma once

#include "kernels/cuda/device.cuh"
#include "model/dtype.h"

namespace pergola {

// Calls `run(T())` with the type of an activation: float, __half or __nv_bfloat16.
template <typename Run>
void WithFloatType(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::kF16:
      return run(__half());
    case DType::kBF16:
      return run(__nv_bfloat16());
    default:
      PERGOLA_CHECK(dtype == DType::kF32);
      return run(float());
  }
}

// kCount neighbours as one access of at most 16 bytes; `values` is aligned to it.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T values[kCount];
};

// How many of kCount neighbours go into one access.
template <int kCount, typename T>
inline constexpr int kPackValues = kCount * sizeof(T) > 16 ? static_cast<int>(16 / sizeof(T))
                                                           : kCount;

template <int kCount, typename T>
__device__ inline void LoadFloats(const T* from, float (&to)[kCount]) {
  constexpr int kValues = kPackValues<kCount, T>;
#pragma unroll
  for (int first = 0; first < kCount; first += kValues) {
    const auto pack = *reinterpret_cast<const Pack<T, kValues>*>(from + first);
#pragma unroll
    for (int i = 0; i < kValues; ++i) to[first + i] = ToFloat(pack.values[i]);
  }
}

template <int kCount, typename T>
__device__ inline void StoreFloats(const float (&from)[kCount], T* to) {
  constexpr int kValues = kPackValues<kCount, T>;
#pragma unroll
  for (int first = 0; first < kCount; first += kValues) {
    Pack<T, kValues> pack;
#pragma unroll
    for (int i = 0; i < kValues; ++i) pack.values[i] = FromFloat<T>(from[first + i]);
    *reinterpret_cast<Pack<T, kValues>*>(to + first) = pack;
  }
}

// Whether rows of `columns` values at `data` may be taken four at a time.
inline bool InFours(const void* data, int64_t columns) {
  return columns % 4 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

}  // namespace pergola
