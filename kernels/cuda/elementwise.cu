// The ops that touch each value once: activations, soft cap, sums, copies. Roof: memory.
#include <algorithm>

#include "kernels/cuda/activation.cuh"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/types.cuh"

namespace pergola {
namespace {

constexpr int kThreads = 256;

// Blocks for `items` items, one per thread, as many as keep every multiprocessor busy; the kernels
// go round.
unsigned BlocksFor(const CudaContext& context, int64_t items) {
  const int64_t most = int64_t{16} * context.multiprocessors;
  return static_cast<unsigned>(std::clamp<int64_t>((items + kThreads - 1) / kThreads, 1, most));
}

__device__ int64_t FirstItem() {
  return blockIdx.x * int64_t{kThreads} + threadIdx.x;
}

__device__ int64_t ItemStride() {
  return gridDim.x * int64_t{kThreads};
}

// x is [rows, width] or, with gate, [rows, 2 * width]; an item is kStep neighbours of y.
template <Activation kActivation, bool kGated, int kStep, typename A>
__global__ void __launch_bounds__(kThreads)
    ActivateKernel(const A* x, A* y, int64_t width, int64_t items) {
  BeginKernel();
  const int64_t per_row = width / kStep;
  for (int64_t item = FirstItem(); item < items; item += ItemStride()) {
    const int64_t row = item / per_row, column = item % per_row * kStep;
    const A* from = x + row * width * (kGated ? 2 : 1) + column;
    float values[kStep];
    LoadFloats(from, values);
#pragma unroll
    for (int k = 0; k < kStep; ++k) values[k] = Activated<kActivation>(values[k]);
    if (kGated) {
      float up[kStep];
      LoadFloats(from + width, up);
#pragma unroll
      for (int k = 0; k < kStep; ++k) values[k] *= up[k];
    }
    StoreFloats(values, y + row * width + column);
  }
}

template <Activation kActivation, bool kGated, typename A>
void LaunchActivate(const CudaContext& context, const ActivateArgs& args) {
  const int64_t width = args.y.dim(1);
  const int64_t values = args.y.values();
  const A* x = args.x.as<A>();
  A* y = args.y.as<A>();
  if (InFours(x, width) && InFours(y, width)) {
    Launch(ActivateKernel<kActivation, kGated, 4, A>, dim3(BlocksFor(context, values / 4)),
           kThreads, 0, context, x, y, width, values / 4);
  } else {
    Launch(ActivateKernel<kActivation, kGated, 1, A>, dim3(BlocksFor(context, values)), kThreads, 0,
           context, x, y, width, values);
  }
}

template <Activation kActivation>
void ActivateAs(const CudaContext& context, const ActivateArgs& args) {
  WithFloatType(args.x.dtype(), [&](auto type) {
    using A = decltype(type);
    if (args.gated) {
      LaunchActivate<kActivation, true, A>(context, args);
    } else {
      LaunchActivate<kActivation, false, A>(context, args);
    }
  });
}

__global__ void __launch_bounds__(kThreads) SoftCapKernel(float* x, float cap, int64_t values) {
  BeginKernel();
  for (int64_t i = FirstItem(); i < values; i += ItemStride()) x[i] = cap * tanhf(x[i] / cap);
}

template <typename A>
__global__ void __launch_bounds__(kThreads) AddKernel(float* x, const A* y, int64_t values) {
  BeginKernel();
  for (int64_t i = FirstItem(); i < values; i += ItemStride()) x[i] += ToFloat(y[i]);
}

template <typename From, typename To>
__global__ void __launch_bounds__(kThreads)
    CopyRowsKernel(const From* x, const int32_t* rows, To* y, int64_t columns, int64_t values) {
  BeginKernel();
  for (int64_t i = FirstItem(); i < values; i += ItemStride()) {
    const int64_t row = rows == nullptr ? i / columns : rows[i / columns];
    if (row >= 0) y[i] = FromFloat<To>(ToFloat(x[row * columns + i % columns]));
  }
}

template <typename A>
__global__ void __launch_bounds__(kThreads)
    CopyColumnsKernel(const A* x, A* y, int64_t columns, int64_t y_columns, int64_t values) {
  BeginKernel();
  for (int64_t i = FirstItem(); i < values; i += ItemStride()) {
    y[i / columns * y_columns + i % columns] = x[i];
  }
}

__global__ void __launch_bounds__(kThreads)
    ScatterKernel(const int32_t* at, const int32_t* values, int64_t count, int32_t* to) {
  BeginKernel();
  for (int64_t i = FirstItem(); i < count; i += ItemStride()) to[at[i]] = values[i];
}

// An id of TokenOfEntry(e) is -2 - e.
__global__ void __launch_bounds__(kThreads)
    TakeTokensKernel(int32_t* ids, const int32_t* tokens, int64_t count) {
  BeginKernel();
  for (int64_t i = FirstItem(); i < count; i += ItemStride()) {
    if (ids[i] <= -2) ids[i] = tokens[-2 - ids[i]];
  }
}

}  // namespace

void ActivateCuda(const CudaContext& context, const ActivateArgs& args) {
  if (args.y.values() == 0) return;
  switch (args.activation) {
    case Activation::kSilu:
      return ActivateAs<Activation::kSilu>(context, args);
    case Activation::kGeluTanh:
      return ActivateAs<Activation::kGeluTanh>(context, args);
    case Activation::kGeluErf:
      return ActivateAs<Activation::kGeluErf>(context, args);
  }
}

void SoftCapCuda(const CudaContext& context, const SoftCapArgs& args) {
  const int64_t values = args.x.values();
  if (values == 0) return;
  Launch(SoftCapKernel, dim3(BlocksFor(context, values)), kThreads, 0, context, args.x.f32(),
         args.cap, values);
}

void AddCuda(const CudaContext& context, const AddArgs& args) {
  const int64_t values = args.x.values();
  if (values == 0) return;
  WithFloatType(args.y.dtype(), [&](auto type) {
    using A = decltype(type);
    Launch(AddKernel<A>, dim3(BlocksFor(context, values)), kThreads, 0, context, args.x.f32(),
           args.y.as<A>(), values);
  });
}

void CopyRowsCuda(const CudaContext& context, const CopyRowsArgs& args) {
  const int64_t values = args.y.values();
  if (values == 0) return;
  WithFloatType(args.x.dtype(), [&](auto from) {
    WithFloatType(args.y.dtype(), [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      Launch(CopyRowsKernel<From, To>, dim3(BlocksFor(context, values)), kThreads, 0, context,
             args.x.as<From>(), args.rows, args.y.as<To>(), args.y.dim(1), values);
    });
  });
}

void CopyColumnsCuda(const CudaContext& context, const CopyColumnsArgs& args) {
  const int64_t values = args.x.values();
  if (values == 0) return;
  WithFloatType(args.x.dtype(), [&](auto type) {
    using A = decltype(type);
    Launch(CopyColumnsKernel<A>, dim3(BlocksFor(context, values)), kThreads, 0, context,
           args.x.as<A>(), args.y.as<A>() + args.first_column, args.x.dim(1), args.y.dim(1),
           values);
  });
}

void ScatterCuda(const CudaContext& context, const ScatterArgs& args) {
  if (args.count == 0) return;
  Launch(ScatterKernel, dim3(BlocksFor(context, args.count)), kThreads, 0, context, args.at,
         args.values, args.count, args.to);
}

void TakeTokensCuda(const CudaContext& context, const TakeTokensArgs& args) {
  if (args.count == 0) return;
  Launch(TakeTokensKernel, dim3(BlocksFor(context, args.count)), kThreads, 0, context, args.ids,
         args.tokens, args.count);
}

void CopyBlockCuda(const CudaContext& context, const CopyBlockArgs& args) {
  EndOverlap(context);
  for (void* cache : {args.k_cache, args.v_cache}) {
    auto* bytes = static_cast<uint8_t*>(cache);
    const cudaError_t copied = cudaMemcpyAsync(
        bytes + args.to * args.block_bytes, bytes + args.from * args.block_bytes,
        static_cast<size_t>(args.block_bytes), cudaMemcpyDeviceToDevice, context.stream);
    if (copied != cudaSuccess) {
      KeepRefusal(context,
                  "copying " + std::to_string(args.block_bytes) + " bytes: " + CudaWords(copied));
    }
  }
}

}  // namespace pergola
