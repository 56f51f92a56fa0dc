// RmsNorm and LayerNorm with the residual added first, and HeadNorm. Roof: memory. A row is read
// once from device memory (x and residual), written once (x and y); the second pass over it finds
// it in the first-level cache. One block per row, so that a decode step of few rows spreads a row
// over a whole multiprocessor; sums run per thread, then over the block, in a fixed order.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/norm_row.cuh"
#include "kernels/cuda/types.cuh"

namespace pergola {
namespace {

constexpr int kNormThreads = 256;
constexpr int kWarpsOfHeads = 4;

template <bool kLayer, int kStep, typename X, typename R, typename Y>
__global__ void __launch_bounds__(kNormThreads) NormKernel(NormJob<X, R, Y> job) {
  BeginKernel();
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x;
  const float sum = UpdateAndSum<kLayer, kNormThreads, kStep>(job, row);
  NormaliseRow<kLayer, kNormThreads, kStep>(job.norm, job.x + row * job.columns, job.columns, sum,
                                            scratch, job.y + row * job.columns);
}

template <bool kLayer, typename X, typename R, typename Y, typename Args>
void LaunchNorm(const CudaContext& context, const Args& args, const float* bias) {
  const NormJob<X, R, Y> job = NormJobOf<X, R, Y>(args, bias);
  const auto rows = static_cast<unsigned>(args.x.dim(0));
  if (InFours(job)) {
    Launch(NormKernel<kLayer, 4, X, R, Y>, dim3(rows), kNormThreads, 0, context, job);
  } else {
    Launch(NormKernel<kLayer, 1, X, R, Y>, dim3(rows), kNormThreads, 0, context, job);
  }
}

// The stream (f32) into activations, the stream into itself (after the embedding), or activations
// into themselves (after a branch).
template <bool kLayer, typename Args>
void Norm(const CudaContext& context, const Args& args, const float* bias) {
  if (args.x.dim(0) == 0) return;
  const DType narrow = args.x.dtype() == DType::kF32 ? args.y.dtype() : args.x.dtype();
  if (args.residual.data() != nullptr) PERGOLA_CHECK(args.residual.dtype() == args.y.dtype());
  WithFloatType(narrow, [&](auto type) {
    using A = decltype(type);
    if (args.x.dtype() == DType::kF32) {
      LaunchNorm<kLayer, float, A, A>(context, args, bias);
    } else {
      PERGOLA_CHECK(args.y.dtype() == narrow);
      LaunchNorm<kLayer, A, A, A>(context, args, bias);
    }
  });
}

template <typename A>
struct HeadNormJob {
  A* qkv;
  const float* query_weight;
  const float* key_weight;
  int64_t rows;
  int heads, kv_heads, head_dim;
  float epsilon;
};

// One warp per head of a row.
template <typename A>
__global__ void __launch_bounds__(kWarpsOfHeads * 32) HeadNormKernel(HeadNormJob<A> job) {
  BeginKernel();
  const int normed = job.heads + job.kv_heads;
  const int64_t item = blockIdx.x * int64_t{kWarpsOfHeads} + threadIdx.x / 32;
  if (item >= job.rows * normed) return;
  const int64_t row = item / normed;
  const int head = static_cast<int>(item % normed);
  const int lane = threadIdx.x % 32;
  A* x = job.qkv + (row * (job.heads + 2 * job.kv_heads) + head) * job.head_dim;
  const float* weight = head < job.heads ? job.query_weight : job.key_weight;
  float sum = 0;
  for (int i = lane; i < job.head_dim; i += 32) sum += ToFloat(x[i]) * ToFloat(x[i]);
  sum = WarpSum(sum);
  const float scale = 1.0F / sqrtf(sum / static_cast<float>(job.head_dim) + job.epsilon);
  for (int i = lane; i < job.head_dim; i += 32) {
    x[i] = FromFloat<A>(ToFloat(x[i]) * scale * weight[i]);
  }
}

}  // namespace

void RmsNormCuda(const CudaContext& context, const RmsNormArgs& args) {
  Norm<false>(context, args, nullptr);
}

void LayerNormCuda(const CudaContext& context, const LayerNormArgs& args) {
  Norm<true>(context, args, args.bias);
}

void HeadNormCuda(const CudaContext& context, const HeadNormArgs& args) {
  const int64_t items = args.qkv.dim(0) * (args.heads + args.kv_heads);
  if (items == 0) return;
  WithFloatType(args.qkv.dtype(), [&](auto type) {
    using A = decltype(type);
    HeadNormJob<A> job;
    job.qkv = args.qkv.as<A>();
    job.query_weight = args.query_weight;
    job.key_weight = args.key_weight;
    job.rows = args.qkv.dim(0);
    job.heads = static_cast<int>(args.heads);
    job.kv_heads = static_cast<int>(args.kv_heads);
    job.head_dim = static_cast<int>(args.head_dim);
    job.epsilon = args.epsilon;
    const auto blocks = static_cast<unsigned>((items + kWarpsOfHeads - 1) / kWarpsOfHeads);
    Launch(HeadNormKernel<A>, dim3(blocks), kWarpsOfHeads * 32, 0, context, job);
  });
}

}  // namespace pergola
