// One token in eight bits, by a block: the kernels that have it in memory (quantize_tokens.cu) or
// have just made it (row_tokens.cu).
//
// int8 (kernels/int8.h) finds the limit, the step, q and a bit per value that says outlier. The
// limit has the reference's bits, for an outlier more or less is a different result: its sixteen
// sums run in sixteen threads, each in order, over squares that the whole block puts into shared
// memory. e4m3 (kernels/fp8.h) needs the largest value alone.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/tokens.h"
#include "kernels/cuda/weight_format.cuh"
#include "kernels/fp8.h"
#include "kernels/int8.h"

namespace pergola {

inline constexpr int kTokenThreads = 256;
inline constexpr int kTokenParts = static_cast<int>(kInt8SumParts);

__device__ __forceinline__ bool IsOutlier(float x, float limit) {
  return !(x <= limit && x >= -limit);
}

// Int8Limit of kernels/int8.h; no multiply-add may be fused.
__device__ __forceinline__ float LimitOf(float squares, int64_t count) {
  if (!(squares > 0x1.0p-100F)) return kInt8Outlier;
  const float mean = __fdiv_rn(squares, static_cast<float>(count));
  const float limit = __fmul_rn(kInt8OutlierRms, __fsqrt_rn(mean));
  return limit < kInt8Outlier ? limit : kInt8Outlier;
}

// One token in global or shared memory, read in octets.
template <typename A>
struct Token {
  const A* values;
  int64_t columns;
  int64_t length;  // values that lie there: `columns`, and zeros
  bool vectors;    // octets are whole and aligned

  // Values first .. first + 7, zeros where there are none.
  __device__ __forceinline__ void Load(int64_t first, float (&octet)[8]) const {
    if (vectors) {
      uint4 raw = make_uint4(0, 0, 0, 0);
      if (first < length) raw = *reinterpret_cast<const uint4*>(values + first);
      const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        octet[2 * i] = PairLow<A>(words[i]);
        octet[2 * i + 1] = PairHigh<A>(words[i]);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      octet[i] = first + i < length ? ToFloat(values[first + i]) : 0.0F;
    }
  }
};

// Int8LimitOf of the token, by the whole block.
template <typename A>
__device__ __forceinline__ float LimitOfToken(const Token<A>& token) {
  constexpr int kTile = kTokenThreads * 8;
  static_assert(kTile % kTokenParts == 0, "part p has the values p, p + 16, ... of every tile");
  __shared__ float4 squares[kTile / 4];
  __shared__ float parts[kTokenParts];
  const auto* in_order = reinterpret_cast<const float*>(squares);
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int64_t first = 0; first < token.columns; first += kTile) {
    float octet[8];
    token.Load(first + thread * 8, octet);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // A zero adds nothing.
      const float value = IsOutlier(octet[i], kInt8Outlier) ? 0.0F : octet[i];
      octet[i] = __fmul_rn(value, value);
    }
    squares[thread * 2] = make_float4(octet[0], octet[1], octet[2], octet[3]);
    squares[thread * 2 + 1] = make_float4(octet[4], octet[5], octet[6], octet[7]);
    __syncthreads();
    if (thread < kTokenParts) {
      const int64_t left = token.columns - first;
      const int count = left < kTile ? static_cast<int>(left) : kTile;
#pragma unroll 8
      for (int k = thread; k < count; k += kTokenParts) sum = __fadd_rn(sum, in_order[k]);
    }
    __syncthreads();
  }
  if (thread < kTokenParts) parts[thread] = sum;
  __syncthreads();
  float all = 0;
#pragma unroll
  for (int i = 0; i < kTokenParts; ++i) all = __fadd_rn(all, parts[i]);
  return LimitOf(all, token.columns);
}

// Row `row` of `tokens`; the outliers go to `outliers` [columns] too, if there are such.
template <typename A>
__device__ __forceinline__ void QuantizeInt8Row(const Token<A>& token, const TokensView& tokens,
                                                int64_t row, A* outliers, float* scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  const float limit = LimitOfToken(token);
  float octet[8], most = 0;
  for (int64_t byte = thread; byte < tokens.mask_stride; byte += kTokenThreads) {
    token.Load(byte * 8, octet);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (!IsOutlier(octet[i], limit)) most = fmaxf(most, fabsf(octet[i]));
    }
  }
  most = BlockMax(most, scratch);
  const bool steps = most >= kSmallestInt8Row;
  const float inverse = steps ? __fdiv_rn(127.0F, most) : 0.0F;
  if (thread == 0) tokens.scale[row] = steps ? __fdiv_rn(most, 127.0F) : 0.0F;
  for (int64_t byte = thread; byte < tokens.mask_stride; byte += kTokenThreads) {
    token.Load(byte * 8, octet);
    uint32_t mask = 0, words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool outlier = IsOutlier(octet[i], limit);
      // Adding 1.5 * 2^23 rounds to an integer, whose low byte is q.
      const float sum = __fadd_rn(__fmul_rn(octet[i], inverse), 12582912.0F);
      mask |= (outlier ? 1U : 0U) << i;
      words[i / 4] |= (outlier ? 0U : Reinterpret<uint32_t>(sum) & 0xff) << (8 * (i % 4));
    }
    tokens.mask[row * tokens.mask_stride + byte] = static_cast<uint8_t>(mask);
    *reinterpret_cast<uint2*>(tokens.q + row * tokens.stride + byte * 8) =
        make_uint2(words[0], words[1]);
    if (outliers == nullptr || mask == 0) continue;
    for (int i = 0; i < 8; ++i) {
      if ((mask >> i & 1) != 0) outliers[byte * 8 + i] = token.values[byte * 8 + i];
    }
  }
}

template <typename A>
__device__ __forceinline__ void QuantizeFp8Row(const Token<A>& token, const TokensView& tokens,
                                               int64_t row, float* scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t octets = tokens.stride / 8;
  float octet[8], most = 0;
  for (int64_t at = thread; at < octets; at += kTokenThreads) {
    token.Load(at * 8, octet);
#pragma unroll
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(octet[i]));
  }
  most = BlockMax(most, scratch);
  const bool steps = most >= kSmallestFp8Row;
  const float inverse = steps ? __fdiv_rn(kMostE4M3, most) : 0.0F;
  if (thread == 0) tokens.scale[row] = steps ? __fdiv_rn(most, kMostE4M3) : 0.0F;
  for (int64_t at = thread; at < octets; at += kTokenThreads) {
    token.Load(at * 8, octet);
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const uint32_t pair =
          PackE4M3(__fmul_rn(octet[i], inverse), __fmul_rn(octet[i + 1], inverse));
      words[i / 4] |= pair << (8 * (i % 4));
    }
    *reinterpret_cast<uint2*>(tokens.q + row * tokens.stride + at * 8) =
        make_uint2(words[0], words[1]);
  }
}

// Of kInt8 or kFp8.
template <DType kD, typename A>
__device__ __forceinline__ void QuantizeRow(const Token<A>& token, const TokensView& tokens,
                                            int64_t row, A* outliers, float* scratch) {
  if constexpr (kD == DType::kInt8) {
    QuantizeInt8Row(token, tokens, row, outliers, scratch);
  } else {
    QuantizeFp8Row(token, tokens, row, scratch);
  }
}

}  // namespace pergola
