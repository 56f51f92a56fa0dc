// Tokens in eight bits of activations that lie in memory. A block per token, eight values a thread
// at a time (quantize_row.cuh); memory: a 16-bit token is read once from memory and again from L1
// and L2, q is half of it. Then, of int8, a block per 64 tokens lists the columns of their
// outliers. The roof is the memory's bandwidth.
#include "kernels/cuda/quantize_row.cuh"
#include "kernels/cuda/types.cuh"

namespace pergola {
namespace {

template <DType kD, typename A>
__global__ void __launch_bounds__(kTokenThreads) QuantizeKernel(const A* x, TokensView tokens) {
  BeginKernel();
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x, columns = tokens.columns;
  const bool vectors = columns % 8 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const Token<A> token = {x + row * columns, columns, columns, vectors};
  QuantizeRow<kD, A>(token, tokens, row, nullptr, scratch);
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
  for (int w = 0; w < kTokenThreads / kWarpThreads; ++w) {
    if (w < warp) sum += totals[w];
    *total += totals[w];
  }
  return sum;
}

__global__ void __launch_bounds__(kTokenThreads) ListOutliersKernel(TokensView tokens) {
  BeginKernel();
  __shared__ int32_t totals[kTokenThreads / kWarpThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t group = blockIdx.x;
  int32_t* list = tokens.outlier_columns + group * tokens.columns;
  int32_t listed = 0;
  for (int64_t first = 0; first < tokens.mask_stride; first += kTokenThreads) {
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
void LaunchQuantize(const CudaContext& context, const Tensor& x, const TokensView& tokens) {
  const auto kernel = tokens.dtype == DType::kInt8 ? QuantizeKernel<DType::kInt8, A>
                                                   : QuantizeKernel<DType::kFp8, A>;
  Launch(kernel, dim3(static_cast<unsigned>(tokens.rows)), kTokenThreads, 0, context, x.as<A>(),
         tokens);
}

}  // namespace

void QuantizeTokensCuda(const CudaContext& context, const Tensor& x, const TokensView& tokens) {
  if (x.dtype() == DType::kBF16) return LaunchQuantize<__nv_bfloat16>(context, x, tokens);
  PERGOLA_CHECK(x.dtype() == DType::kF16);
  LaunchQuantize<__half>(context, x, tokens);
}

void ListOutliersCuda(const CudaContext& context, const TokensView& tokens) {
  PERGOLA_CHECK(tokens.dtype == DType::kInt8 && 8 * tokens.mask_stride == tokens.stride);
  Launch(ListOutliersKernel, dim3(static_cast<unsigned>(tokens.groups())), kTokenThreads, 0,
         context, tokens);
}

}  // namespace pergola
