// What the sampling kernels compute with: order keys, the exponential, the counter RNG, and sums
// and maxima over a block. Only for kernels/cuda/sample*.cu.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sample.h"

namespace pergola {

inline constexpr int kSampleThreads = 256;
inline constexpr int kSampleWarps = kSampleThreads / kWarpThreads;

__device__ inline float MinusInfinity() {
  return -HUGE_VALF;
}

// Grows with the value; -0 and 0, which are equal, share a key.
__device__ inline uint32_t OrderedBits(float value) {
  const float same = value == 0.0F ? 0.0F : value;
  uint32_t bits;
  memcpy(&bits, &same, sizeof(bits));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ inline float ValueOfOrderedBits(uint32_t ordered) {
  const uint32_t bits = (ordered >> 31) != 0 ? ordered & 0x7FFFFFFFU : ~ordered;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
// Unique in a row: larger for a larger logit, and at equal logits for a lower id. Never 0 for a
// finite logit: 0 stands for none.
__device__ inline uint64_t RankKey(float value, int64_t id) {
  return static_cast<uint64_t>(OrderedBits(value)) << 32 |
         (0xFFFFFFFFU - static_cast<uint32_t>(id));
}
__device__ inline float ValueOfKey(uint64_t key) {
  return key == 0 ? MinusInfinity() : ValueOfOrderedBits(static_cast<uint32_t>(key >> 32));
}
__device__ inline int32_t IdOfKey(uint64_t key) {
  return static_cast<int32_t>(0xFFFFFFFFU - static_cast<uint32_t>(key));
}

// e^x for x <= 0, as SoftmaxWeight of kernels/sample_math.h (constants there; its Taylor series of
// degree 13), but with fused multiply-adds: at most a unit in the last place from it, in half the
// instructions.
__device__ inline double DeviceWeight(double x) {
  if (!(x >= -700.0)) return 0.0;  // NaN, too: minus infinity beside minus infinity
  const double shifted = fma(x, 1.4426950408889634, 0x1.8p52);
  const double n = shifted - 0x1.8p52;
  const double r = fma(-n, 0x1.a39ef35793c76p-33, fma(-n, 0x1.62e42feep-1, x));
  double p = 1.0 / 6227020800;
  p = fma(p, r, 1.0 / 479001600);
  p = fma(p, r, 1.0 / 39916800);
  p = fma(p, r, 1.0 / 3628800);
  p = fma(p, r, 1.0 / 362880);
  p = fma(p, r, 1.0 / 40320);
  p = fma(p, r, 1.0 / 5040);
  p = fma(p, r, 1.0 / 720);
  p = fma(p, r, 1.0 / 120);
  p = fma(p, r, 1.0 / 24);
  p = fma(p, r, 1.0 / 6);
  p = fma(p, r, 0.5);
  p = fma(p, r, 1.0);
  p = fma(p, r, 1.0);
  uint64_t bits, exponent;
  memcpy(&bits, &p, sizeof(bits));
  memcpy(&exponent, &shifted, sizeof(exponent));
  bits += exponent << 52;
  memcpy(&p, &bits, sizeof(p));
  return p;
}

// The 64 random bits behind UniformDraw of base/counter_rng.h, whose u is ((bits >> 12) + 1/2) /
// 2^52: Philox4x32-10 of Salmon et al., SC 2011.
__device__ inline uint64_t DrawBits(const SampleJob& job, uint32_t id) {
  uint32_t c0 = id, c1 = job.position, c2 = job.index, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(job.seed), k1 = static_cast<uint32_t>(job.seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9U;
    k1 += 0xBB67AE85U;
  }
  return static_cast<uint64_t>(c0) << 32 | c1;
}
__device__ inline double UniformOfBits(uint64_t bits) {
  return (static_cast<double>(bits >> 12) + 0.5) * 0x1.0p-52;
}

// Over the block, the same bits for all threads. `scratch`: kSampleWarps values of shared memory,
// free for the next call at once.
template <typename T>
__device__ inline T SumOverBlock(T value, T* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
#pragma unroll
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, distance);
  }
  __syncthreads();  // the last call's readers are done
  if (threadIdx.x % kWarpThreads == 0) scratch[warp] = value;
  __syncthreads();
  value = scratch[0];
  for (int i = 1; i < kSampleWarps; ++i) value += scratch[i];
  return value;
}
template <typename T>
__device__ inline T MaxOverBlock(T value, T* scratch) {
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
#pragma unroll
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    const T other = __shfl_xor_sync(0xffffffff, value, distance);
    value = other > value ? other : value;
  }
  __syncthreads();
  if (threadIdx.x % kWarpThreads == 0) scratch[warp] = value;
  __syncthreads();
  value = scratch[0];
  for (int i = 1; i < kSampleWarps; ++i) value = scratch[i] > value ? scratch[i] : value;
  return value;
}

// Larger keys first; `count` is a power of two. Batcher, "Sorting networks and their applications",
// 1968: the bitonic sort.
__device__ inline void SortKeys(uint64_t* keys, int count) {
  for (int size = 2; size <= count; size *= 2) {
    for (int distance = size / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < count / 2; i += kSampleThreads) {
        const int low = 2 * i - (i & (distance - 1));
        const uint64_t a = keys[low], b = keys[low + distance];
        if ((a < b) == ((low & size) == 0)) {
          keys[low] = b;
          keys[low + distance] = a;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace pergola
