// Tokens in eight bits. A block per token; memory: a 16-bit token is read once from memory and
// again from L1 and L2, q is half of it. The roof is the memory's bandwidth.
//
// int8 (kernels/int8.h) finds the limit, the step, q and a bit per value that says outlier. The
// limit has the reference's bits, for an outlier more or less is a different result: its sixteen
// sums run in sixteen threads, each in order. Then a block per 64 tokens lists the columns of their
// outliers. e4m3 (kernels/fp8.h) needs the largest value alone.
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

// Int8LimitOf of token `row`, by the whole block.
__device__ __forceinline__ float LimitOfToken(const void* x, DType dtype, int64_t begin,
                                              int64_t columns) {
  __shared__ float parts[kParts];
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kParts) {
    float sum = 0;
    for (int64_t k = thread; k < columns; k += kParts) {
      float value = LoadAs(x, dtype, begin + k);
      if (IsOutlier(value, kInt8Outlier)) value = 0;
      sum = __fadd_rn(sum, __fmul_rn(value, value));
    }
    parts[thread] = sum;
  }
  __syncthreads();
  float squares = 0;
  for (int i = 0; i < kParts; ++i) squares = __fadd_rn(squares, parts[i]);
  return LimitOf(squares, columns);
}

__global__ void __launch_bounds__(kThreads)
    QuantizeInt8Kernel(const void* x, DType dtype, TokensView tokens) {
  BeginKernel();
  __shared__ float scratch[32];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x, columns = tokens.columns;
  const int64_t begin = row * columns;
  const float limit = LimitOfToken(x, dtype, begin, columns);
  float most = 0;
  for (int64_t k = thread; k < columns; k += kThreads) {
    const float value = LoadAs(x, dtype, begin + k);
    if (!IsOutlier(value, limit)) most = fmaxf(most, fabsf(value));
  }
  most = BlockMax(most, scratch);
  const bool steps = most >= kSmallestInt8Row;
  const float inverse = steps ? __fdiv_rn(127.0F, most) : 0.0F;
  if (thread == 0) tokens.scale[row] = steps ? __fdiv_rn(most, 127.0F) : 0.0F;
  for (int64_t byte = thread; byte < tokens.mask_stride; byte += kThreads) {
    uint32_t mask = 0, words[2] = {0, 0};
    for (int j = 0; j < 8 && byte * 8 + j < columns; ++j) {
      const float value = LoadAs(x, dtype, begin + byte * 8 + j);
      if (IsOutlier(value, limit)) {
        mask |= 1U << j;
        continue;
      }
      // Adding 1.5 * 2^23 rounds to an integer, whose low byte is q.
      const float sum = __fadd_rn(__fmul_rn(value, inverse), 12582912.0F);
      words[j / 4] |= (Reinterpret<uint32_t>(sum) & 0xff) << (8 * (j % 4));
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

__global__ void __launch_bounds__(kThreads) ListOutliersKernel(TokensView tokens) {
  BeginKernel();
  __shared__ int32_t counts[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.x;
  int32_t* list = tokens.outlier_columns + group * tokens.columns;
  int32_t listed = 0;
  for (int64_t first = 0; first < tokens.mask_stride; first += kThreads) {
    const int64_t byte = first + thread;
    const uint32_t mask = byte < tokens.mask_stride ? MaskOfGroup(tokens, group, byte) : 0;
    counts[thread] = __popc(mask);
    __syncthreads();
    int32_t at = listed;
    for (int i = 0; i < kThreads; ++i) {
      if (i < thread) at += counts[i];
      listed += counts[i];
    }
    for (int j = 0; j < 8; ++j) {
      if ((mask >> j & 1) != 0) list[at++] = static_cast<int32_t>(byte * 8 + j);
    }
    __syncthreads();
  }
  if (thread == 0) tokens.outlier_counts[group] = listed;
}

__global__ void __launch_bounds__(kThreads)
    QuantizeFp8Kernel(const void* x, DType dtype, TokensView tokens) {
  BeginKernel();
  __shared__ float scratch[32];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x, columns = tokens.columns;
  const int64_t begin = row * columns;
  float most = 0;
  for (int64_t k = thread; k < columns; k += kThreads) {
    most = fmaxf(most, fabsf(LoadAs(x, dtype, begin + k)));
  }
  most = BlockMax(most, scratch);
  const bool steps = most >= kSmallestFp8Row;
  const float inverse = steps ? __fdiv_rn(kMostE4M3, most) : 0.0F;
  if (thread == 0) tokens.scale[row] = steps ? __fdiv_rn(most, kMostE4M3) : 0.0F;
  for (int64_t octet = thread; octet < tokens.stride / 8; octet += kThreads) {
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      float pair[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t k = octet * 8 + j + i;
        if (k < columns) pair[i] = __fmul_rn(LoadAs(x, dtype, begin + k), inverse);
      }
      words[j / 4] |= PackE4M3(pair[0], pair[1]) << (8 * (j % 4));
    }
    *reinterpret_cast<uint2*>(tokens.q + row * tokens.stride + octet * 8) =
        make_uint2(words[0], words[1]);
  }
}

}  // namespace

void QuantizeInt8TokensCuda(const CudaContext& context, const Tensor& x, const TokensView& tokens) {
  PERGOLA_CHECK(x.dtype() == DType::kBF16 || x.dtype() == DType::kF16);
  PERGOLA_CHECK(8 * tokens.mask_stride == tokens.stride);
  Launch(QuantizeInt8Kernel, dim3(static_cast<unsigned>(tokens.rows)), kThreads, 0, context,
         x.data(), x.dtype(), tokens);
  Launch(ListOutliersKernel, dim3(static_cast<unsigned>(tokens.groups())), kThreads, 0, context,
         tokens);
}

void QuantizeFp8TokensCuda(const CudaContext& context, const Tensor& x, const TokensView& tokens) {
  PERGOLA_CHECK(x.dtype() == DType::kBF16 || x.dtype() == DType::kF16);
  Launch(QuantizeFp8Kernel, dim3(static_cast<unsigned>(tokens.rows)), kThreads, 0, context,
         x.data(), x.dtype(), tokens);
}

}  // namespace pergola
