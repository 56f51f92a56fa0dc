// The arithmetic of a warp in the fast attention kernels: products of queries and keys, online
// softmax, sums of weighted values, all in tensor core fragments (layout in device.cuh). Scores and
// sums are [row tiles of 16][tiles of 8 columns][4]; a thread has rows g and g + 8 of a row tile.
#pragma once

#include "kernels/cuda/attention_tile.cuh"

namespace pergola {

// c[0] += a b[0..1], c[1] += a b[2..3].
template <typename T>
__device__ inline void MultiplyPair(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[4]) {
  const uint32_t low[2] = {b[0], b[1]};
  const uint32_t high[2] = {b[2], b[3]};
  Mma16816<T>(c0, a, low);
  Mma16816<T>(c1, a, high);
}

// Two values rounded to T, the first in the lower half.
template <typename T>
__device__ uint32_t PackPair(float first, float second);
template <>
__device__ inline uint32_t PackPair<__half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}
template <>
__device__ inline uint32_t PackPair<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// The factor that brings sums relative to `from` to `to` >= from, both exponents of two; 1 where
// both are minus infinity, so that nothing changes.
__device__ inline float ShrinkFactor(float from, float to) {
  return from == to ? 1.0F : FastExp2(from - to);
}

// What to subtract from scores whose largest is `largest`: minus infinity minus itself would be a
// NaN where a row has seen no key yet.
__device__ inline float ShiftOf(float largest) {
  return largest == -INFINITY ? 0.0F : largest;
}

// Sum and maximum over the four lanes that hold one row of a tensor core result.
__device__ inline float QuadSum(float value) {
  value += __shfl_xor_sync(0xffffffff, value, 1);
  return value + __shfl_xor_sync(0xffffffff, value, 2);
}
__device__ inline float QuadMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffff, value, 2));
}

// Of one warp, relative to the largest score so far, an exponent of two.
template <int kDim, int kRowTiles>
struct Accumulator {
  float sum[kRowTiles][kDim / 8][4];
  float largest[kRowTiles][2];
  float total[kRowTiles][2];  // of this thread's columns
};

template <int kRowTiles, int kColumnTiles>
__device__ inline void Clear(float (&tiles)[kRowTiles][kColumnTiles][4]) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) tiles[m][n][i] = 0.0F;
    }
  }
}

template <int kDim, int kRowTiles>
__device__ inline void Clear(Accumulator<kDim, kRowTiles>* acc) {
  Clear(acc->sum);
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    acc->largest[m][0] = acc->largest[m][1] = -INFINITY;
    acc->total[m][0] = acc->total[m][1] = 0.0F;
  }
}

// scores += queries keys^T; the lanes' offsets are RowLane's and KeyLane's.
template <typename T, int kDim, int kRowTiles, int kKeyTiles>
__device__ inline void AddProducts(const T* queries, int query_lane, const T* keys, int key_lane,
                                   float (&scores)[kRowTiles][kKeyTiles][4]) {
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    uint32_t a[kRowTiles][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) LoadRows<kDim>(a[m], queries, query_lane, m * 16, step);
#pragma unroll
    for (int n = 0; n < kKeyTiles / 2; ++n) {
      uint32_t b[4];
      LoadKeys<kDim>(b, keys, key_lane, n * 16, step);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        MultiplyPair<T>(scores[m][2 * n], scores[m][2 * n + 1], a[m], b);
      }
    }
  }
}

// Brings the sums to the new largest scores; `shrink` for each row.
template <int kDim, int kRowTiles>
__device__ inline void Shrink(const float (&shrink)[kRowTiles][2],
                              Accumulator<kDim, kRowTiles>* acc) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
    acc->total[m][0] *= shrink[m][0];
    acc->total[m][1] *= shrink[m][1];
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc->sum[m][n][i] *= shrink[m][i / 2];
    }
  }
}

// Turns scores (exponents of two when multiplied by `factor` > 0) into weights in place, and brings
// the sums to the new largest score.
template <int kDim, int kRowTiles, int kKeyTiles>
__device__ inline void Softmax(float factor, float (&scores)[kRowTiles][kKeyTiles][4],
                               Accumulator<kDim, kRowTiles>* acc) {
  float shrink[kRowTiles][2];
  bool moved = false;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = -INFINITY;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
        largest = fmaxf(largest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
      }
      const float old = acc->largest[m][half];
      largest = fmaxf(old, QuadMax(largest) * factor);
      shrink[m][half] = ShrinkFactor(old, largest);
      moved = moved || largest != old;
      acc->largest[m][half] = largest;
    }
  }
  // In most tiles behind the first no row finds a larger score.
  if (__any_sync(0xffffffff, moved)) Shrink(shrink, acc);
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float shift = ShiftOf(acc->largest[m][half]);
      float total = 0.0F;
#pragma unroll
      for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[m][n][i] = FastExp2(scores[m][n][i] * factor - shift);
          total += scores[m][n][i];
        }
      }
      acc->total[m][half] += total;
    }
  }
}

// Weights as the left operand of weights values: a result's columns are an operand's k.
template <typename T, int kRowTiles, int kKeyTiles>
__device__ inline void PackWeights(const float (&scores)[kRowTiles][kKeyTiles][4],
                                   uint32_t (&weights)[kRowTiles][kKeyTiles / 2][4]) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
      weights[m][n / 2][n % 2 * 2] = PackPair<T>(scores[m][n][0], scores[m][n][1]);
      weights[m][n / 2][n % 2 * 2 + 1] = PackPair<T>(scores[m][n][2], scores[m][n][3]);
    }
  }
}

// sum += weights values.
template <typename T, int kDim, int kRowTiles, int kKeySteps>
__device__ inline void AddValues(const uint32_t (&weights)[kRowTiles][kKeySteps][4],
                                 const T* values, int row_lane, Accumulator<kDim, kRowTiles>* acc) {
#pragma unroll
  for (int k = 0; k < kKeySteps; ++k) {
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t b[4];
      LoadValues<kDim>(b, values, row_lane, k * 16, step);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        MultiplyPair<T>(acc->sum[m][2 * step], acc->sum[m][2 * step + 1], weights[m][k], b);
      }
    }
  }
}

}  // namespace pergola
