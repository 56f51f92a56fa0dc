// Ops whose y is read by a product of tokens in eight bits alone: a norm, an MLP's activation. A
// block makes a row of y in shared memory and its token from there (quantize_row.cuh), so that y
// never goes to memory but for an int8 token's outliers, which the product multiplies as they are.
//
// Roof: memory. Per value a norm moves 11 bytes (x read and written, residual read, q written)
// instead of 15, an activation 5 (gate, up, q) instead of 9.
#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/norm_row.cuh"
#include "kernels/cuda/quantize_row.cuh"
#include "kernels/cuda/types.cuh"

namespace pergola {
namespace {

// The row in shared memory, [stride], once its `columns` values are there.
template <typename A>
__device__ __forceinline__ Token<A> FinishRow(A* row, const TokensView& tokens) {
  for (int64_t i = tokens.columns + threadIdx.x; i < tokens.stride; i += kTokenThreads) {
    row[i] = FromFloat<A>(0.0F);
  }
  __syncthreads();
  return {row, tokens.columns, tokens.stride, true};
}

template <DType kD, bool kLayer, int kStep, typename A>
__global__ void __launch_bounds__(kTokenThreads)
    NormTokensKernel(NormJob<float, A, A> job, TokensView tokens) {
  BeginKernel();
  __shared__ float scratch[32];
  A* normed = DynamicShared<A>();
  const int64_t row = blockIdx.x, first = row * job.columns;
  const float sum = UpdateAndSum<kLayer, kTokenThreads, kStep>(job, row);
  NormaliseRow<kLayer, kTokenThreads, kStep>(job.norm, job.x + first, job.columns, sum, scratch,
                                             normed);
  QuantizeRow<kD, A>(FinishRow(normed, tokens), tokens, row, job.y + first, scratch);
}

// x is [rows, 2 * columns]: gate, then up.
template <DType kD, Activation kActivation, int kStep, typename A>
__global__ void __launch_bounds__(kTokenThreads)
    ActivateTokensKernel(const A* x, A* y, TokensView tokens) {
  BeginKernel();
  __shared__ float scratch[32];
  A* activated = DynamicShared<A>();
  const int64_t row = blockIdx.x;
  const int columns = static_cast<int>(tokens.columns);
  const A* gate = x + row * 2 * columns;
  for (int i = threadIdx.x * kStep; i < columns; i += kTokenThreads * kStep) {
    float values[kStep], up[kStep];
    LoadFloats(gate + i, values);
    LoadFloats(gate + columns + i, up);
#pragma unroll
    for (int k = 0; k < kStep; ++k) values[k] = Activated<kActivation>(values[k]) * up[k];
    StoreFloats(values, activated + i);
  }
  QuantizeRow<kD, A>(FinishRow(activated, tokens), tokens, row, y + row * columns, scratch);
}

template <typename A, typename... P, typename... V>
void LaunchRows(void (*kernel)(P...), const CudaContext& context, const TokensView& tokens,
                V... values) {
  PERGOLA_CHECK(tokens.columns <= kMostRowTokenColumns);
  Launch(kernel, dim3(static_cast<unsigned>(tokens.rows)), kTokenThreads,
         tokens.stride * static_cast<int64_t>(sizeof(A)), context, values..., tokens);
}

template <DType kD, bool kLayer, typename A, typename Args>
void LaunchNorm(const CudaContext& context, const Args& args, const float* bias,
                const TokensView& tokens) {
  const auto job = NormJobOf<float, A, A>(args, bias);
  const auto kernel =
      InFours(job) ? NormTokensKernel<kD, kLayer, 4, A> : NormTokensKernel<kD, kLayer, 1, A>;
  LaunchRows<A>(kernel, context, tokens, job);
}

// Calls `run` with the 16-bit type.
template <typename Run>
void WithHalfType(DType dtype, const Run& run) {
  if (dtype == DType::kBF16) return run(__nv_bfloat16());
  PERGOLA_CHECK(dtype == DType::kF16);
  run(__half());
}

template <bool kLayer, typename Args>
void Norm(const CudaContext& context, const Args& args, const float* bias,
          const TokensView& tokens) {
  PERGOLA_CHECK(args.x.dtype() == DType::kF32);
  if (args.residual.data() != nullptr) PERGOLA_CHECK(args.residual.dtype() == args.y.dtype());
  WithHalfType(args.y.dtype(), [&](auto type) {
    using A = decltype(type);
    if (tokens.dtype == DType::kInt8) {
      LaunchNorm<DType::kInt8, kLayer, A>(context, args, bias, tokens);
    } else {
      LaunchNorm<DType::kFp8, kLayer, A>(context, args, bias, tokens);
    }
  });
}

template <DType kD, Activation kActivation, typename A>
void LaunchActivate(const CudaContext& context, const ActivateArgs& args,
                    const TokensView& tokens) {
  const A* x = args.x.as<A>();
  const auto kernel = InFours(x, tokens.columns) ? ActivateTokensKernel<kD, kActivation, 4, A>
                                                 : ActivateTokensKernel<kD, kActivation, 1, A>;
  LaunchRows<A>(kernel, context, tokens, x, args.y.as<A>());
}

template <Activation kActivation>
void ActivateAs(const CudaContext& context, const ActivateArgs& args, const TokensView& tokens) {
  WithHalfType(args.x.dtype(), [&](auto type) {
    using A = decltype(type);
    if (tokens.dtype == DType::kInt8) {
      LaunchActivate<DType::kInt8, kActivation, A>(context, args, tokens);
    } else {
      LaunchActivate<DType::kFp8, kActivation, A>(context, args, tokens);
    }
  });
}

}  // namespace

void NormTokensCuda(const CudaContext& context, const RmsNormArgs& args, const TokensView& tokens) {
  Norm<false>(context, args, nullptr, tokens);
}

void NormTokensCuda(const CudaContext& context, const LayerNormArgs& args,
                    const TokensView& tokens) {
  Norm<true>(context, args, args.bias, tokens);
}

void ActivateTokensCuda(const CudaContext& context, const ActivateArgs& args,
                        const TokensView& tokens) {
  PERGOLA_CHECK(args.gated);
  switch (args.activation) {
    case Activation::kSilu:
      return ActivateAs<Activation::kSilu>(context, args, tokens);
    case Activation::kGeluTanh:
      return ActivateAs<Activation::kGeluTanh>(context, args, tokens);
    case Activation::kGeluErf:
      return ActivateAs<Activation::kGeluErf>(context, args, tokens);
  }
}

}  // namespace pergola
