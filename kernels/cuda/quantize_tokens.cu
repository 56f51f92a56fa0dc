// Tokens in eight bits. A block per token, eight values a thread at a time; memory: a 16-bit token
// is read once from memory and again from L1 and L2, q is half of it. The roof is the memory's
// bandwidth.
//
// int8 (kernels/int8.h) finds the limit, the step, q and a bit per value that says outlier. The
// limit has the reference's bits, for an outlier more or less is a different result: its sixteen
// sums run in sixteen threads, each in order, over squares that the whole block puts into shared
// memory. Then a block per 64 tokens lists the columns of their outliers. e4m3 (kernels/fp8.h)
// needs the largest value alone.
#include "kernels/cuda/matmul_parts.cuh"
#include "kernels/cuda/tokens.cuh"
#include "kernels/fp8.h"
#include "kernels/int8.h"

namespace pergola {
namespace {

constexpr int kThreads = 256;
constexpr int kParts = static_cast<int>(kInt8SumParts);

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

// One token, read in octets.
template <typename A>
struct Token {
  const A* values;
  int64_t columns;
  bool vectors;  // octets are whole and aligned

  // Values first .. first + 7, zeros where there are none.
  __device__ __forceinline__ void Load(int64_t first, float (&octet)[8]) const {
    if (vectors) {
      uint4 raw = make_uint4(0, 0, 0, 0);
      if (first < columns) raw = *reinterpret_cast<const uint4*>(values + first);
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
      octet[i] = first + i < columns ? ToFloat(values[first + i]) : 0.0F;
    }
  }
};

template <typename A>
__device__ __forceinline__ Token<A> TokenOf(const A* x, const TokensView& tokens) {
  const int64_t columns = tokens.columns;
  const bool vectors = columns % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  return {x + static_cast<int64_t>(blockIdx.x) * columns, columns, vectors};
}

// Int8LimitOf of the token, by the whole block.
template <typename A>
__device__ __forceinline__ float LimitOfToken(const Token<A>& token) {
  constexpr int kTile = kThreads * 8;
  static_assert(kTile % kParts == 0, "part p has the values p, p + kParts, ... of every tile");
  __shared__ __align__(16) float squares[kTile];
  __shared__ float parts[kParts];
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int64_t first = 0; first < token.columns; first += kTile) {
    float octet[8];
    token.Load(first + thread * 8, octet);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // A zero adds nothing.
      const float value = IsOutlier(octet[i], kInt8Outlier) ? 0.0F : octet[i];
      squares[thread * 8 + i] = __fmul_rn(value, value);
    }
    __syncthreads();
    if (thread < kParts) {
#pragma unroll 8
      for (int k = thread; k < kTile; k += kParts) sum = __fadd_rn(sum, squares[k]);
    }
    __syncthreads();
  }
  if (thread < kParts) parts[thread] = sum;
  __syncthreads();
  float all = 0;
  for (int i = 0; i < kParts; ++i) all = __fadd_rn(all, parts[i]);
  return LimitOf(all, token.columns);
}

template <typename A>
__global__ void __launch_bounds__(kThreads) QuantizeInt8Kernel(const A* x, TokensView tokens) {
  BeginKernel();
  __shared__ float scratch[32];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  const Token<A> token = TokenOf(x, tokens);
  const float limit = LimitOfToken(token);
  float octet[8], most = 0;
  for (int64_t byte = thread; byte < tokens.mask_stride; byte += kThreads) {
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
  for (int64_t byte = thread; byte < tokens.mask_stride; byte += kThreads) {
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
  }
}

// Bits of byte `byte` in any token of the group.
__device__ __forceinline__ uint32_t MaskOfGroup(const TokensView& tokens, int64_t group,
                                                int64_t byte) {
  uint32_t mask = 0;
  for (int64_t row = group * kOutlierRows; row < (group + 1) * kOutlierRows; ++row) {
    if (row < tokens.rows) mask |= tokens.mask[row * tokens.mask_stride + byte];
  }
  return mask;
}

// The sum of `count` over the block's threads before this one; `total` of all.
__device__ __forceinline__ int32_t SumBefore(int32_t count, int32_t* totals, int32_t* total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  int32_t through = count;
#pragma unroll
  for (int distance = 1; distance < kWarpThreads; distance *= 2) {
    const int32_t before = __shfl_up_sync(0xffffffff, through, distance);
    if (lane >= distance) through += before;
  }
  __syncthreads();  // the last call's readers are done
  if (lane == kWarpThreads - 1) totals[warp] = through;
  __syncthreads();
  int32_t sum = through - count;
  *total = 0;
#pragma unroll
  for (int w = 0; w < kThreads / kWarpThreads; ++w) {
    if (w < warp) sum += totals[w];
    *total += totals[w];
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads) ListOutliersKernel(TokensView tokens) {
  BeginKernel();
  __shared__ int32_t totals[kThreads / kWarpThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.x;
  int32_t* list = tokens.outlier_columns + group * tokens.columns;
  int32_t listed = 0;
  for (int64_t first = 0; first < tokens.mask_stride; first += kThreads) {
    const int64_t byte = first + thread;
    const uint32_t mask = byte < tokens.mask_stride ? MaskOfGroup(tokens, group, byte) : 0;
    int32_t more = 0;
    int32_t at = listed + SumBefore(__popc(mask), totals, &more);
    listed += more;
    for (int j = 0; j < 8; ++j) {
      if ((mask >> j & 1) != 0) list[at++] = static_cast<int32_t>(byte * 8 + j);
    }
  }
  if (thread == 0) tokens.outlier_counts[group] = listed;
}

template <typename A>
__global__ void __launch_bounds__(kThreads) QuantizeFp8Kernel(const A* x, TokensView tokens) {
  BeginKernel();
  __shared__ float scratch[32];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x, octets = tokens.stride / 8;
  const Token<A> token = TokenOf(x, tokens);
  float octet[8], most = 0;
  for (int64_t at = thread; at < octets; at += kThreads) {
    token.Load(at * 8, octet);
#pragma unroll
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(octet[i]));
  }
  most = BlockMax(most, scratch);
  const bool steps = most >= kSmallestFp8Row;
  const float inverse = steps ? __fdiv_rn(kMostE4M3, most) : 0.0F;
  if (thread == 0) tokens.scale[row] = steps ? __fdiv_rn(most, kMostE4M3) : 0.0F;
  for (int64_t at = thread; at < octets; at += kThreads) {
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

// A block per token, by the type of the tokens.
void LaunchPerToken(const CudaContext& context, const Tensor& x, const TokensView& tokens,
                    void (*bf16)(const __nv_bfloat16*, TokensView),
                    void (*f16)(const __half*, TokensView)) {
  const dim3 grid(static_cast<unsigned>(tokens.rows));
  if (x.dtype() == DType::kBF16) {
    return Launch(bf16, grid, kThreads, 0, context, x.as<__nv_bfloat16>(), tokens);
  }
  PERGOLA_CHECK(x.dtype() == DType::kF16);
  Launch(f16, grid, kThreads, 0, context, x.as<__half>(), tokens);
}

}  // namespace

void QuantizeInt8TokensCuda(const CudaContext& context, const Tensor& x, const TokensView& tokens) {
  PERGOLA_CHECK(8 * tokens.mask_stride == tokens.stride);
  LaunchPerToken(context, x, tokens, QuantizeInt8Kernel<__nv_bfloat16>, QuantizeInt8Kernel<__half>);
  Launch(ListOutliersKernel, dim3(static_cast<unsigned>(tokens.groups())), kThreads, 0, context,
         tokens);
}

void QuantizeFp8TokensCuda(const CudaContext& context, const Tensor& x, const TokensView& tokens) {
  LaunchPerToken(context, x, tokens, QuantizeFp8Kernel<__nv_bfloat16>, QuantizeFp8Kernel<__half>);
}

}  // namespace pergola
