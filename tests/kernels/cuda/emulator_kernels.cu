#include "tests/kernels/cuda/emulator_kernels.h"

#include "kernels/cuda/device.cuh"

namespace pergola {
namespace {

constexpr unsigned kAllLanes = 0xffffffff;

__device__ void Reverse(Fault fault, float x, float* y) {
  float* shared = DynamicShared<float>();
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  shared[i] = x;
  if (fault == Fault::kNone) __syncthreads();
  if (fault == Fault::kNoWarpBarrier) {
    y[i] = shared[i / kWarpThreads * kWarpThreads + kWarpThreads - 1 - i % kWarpThreads];
  } else {
    y[i] = shared[n - 1 - i];
  }
}

__device__ void Copy(Fault fault, const float* x, float* y) {
  float* shared = DynamicShared<float>();
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  if (i < n / 8) CopyAsync16(shared + 4 * i, x + 4 * i, i < n / 16);
  CopyAsyncCommit();
  if (i < n / 8) CopyAsync16(shared + n / 2 + 4 * i, x + n / 2 + 4 * i, true);
  CopyAsyncCommit();
  if (fault == Fault::kShortWait) CopyAsyncWait<1>();
  __syncthreads();
  y[i] = shared[i];
}

__device__ float Collective(Fault fault, float x) {
  const int i = static_cast<int>(threadIdx.x);
  switch (fault) {
    case Fault::kExitAtBarrier:
      if (i != 5) __syncthreads();
      return x;
    case Fault::kExitInWarp:
      return i == 5 ? x : __shfl_xor_sync(kAllLanes, x, 1);
    case Fault::kDifferentWaits:
      if (i == 3) __syncthreads();
      return __shfl_xor_sync(kAllLanes, x, 1);
    case Fault::kDifferentShuffles:
      return i == 3 ? __shfl_xor_sync(kAllLanes, x, 1) : __shfl_sync(kAllLanes, x, 1);
    default:
      return __shfl_sync(0xffff, x, 1);
  }
}

__global__ void FaultKernel(Fault fault, const float* x, float* y) {
  float* shared = DynamicShared<float>();
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  switch (fault) {
    case Fault::kNone:
    case Fault::kNoBarrier:
    case Fault::kNoWarpBarrier:
      return Reverse(fault, x[i], y);
    case Fault::kNoWait:
    case Fault::kShortWait:
      return Copy(fault, x, y);
    case Fault::kUnwrittenShared:
      y[i] = shared[i];
      return;
    case Fault::kWriteBeyond:
      shared[n + i] = x[i];
      return;
    case Fault::kCopyBeyond:
      CopyAsync16(shared + n, x, true);
      return;
    case Fault::kMisalignedCopy:
      CopyAsync16(shared, x + 1, true);
      return;
    default:
      y[i] = Collective(fault, x[i]);
  }
}

__global__ void BlockOrderKernel(int* count, int* y) {
  if (threadIdx.x == 0) y[atomicAdd(count, 1)] = static_cast<int>(blockIdx.x);
}

__global__ void EmptyKernel() {}

__global__ void CopyKernel(Reads reads, const float* from, float* to) {
  LetNextBegin();
  const float early = *from;
  if (reads != Reads::kWithoutAwait) AwaitPrevious();
  const float value = reads == Reads::kAfterAwait ? *from : early;
  if (threadIdx.x == 0) *to = value;
}

}  // namespace

void RunFault(const CudaContext& context, Fault fault, int threads, const float* x, float* y) {
  Launch(FaultKernel, dim3(1), threads, threads * int64_t{sizeof(float)}, context, fault, x, y);
}

void RunOverlap(const CudaContext& context, Reads reads, const float* x, float* y, float* z) {
  Launch(CopyKernel, dim3(1), kWarpThreads, 0, context, Reads::kAfterAwait, x, y);
  Launch(CopyKernel, dim3(1), kWarpThreads, 0, context, reads, y, z);
}

void BlockOrderCuda(const CudaContext& context, int blocks, int* count, int* y) {
  Launch(BlockOrderKernel, dim3(static_cast<unsigned>(blocks)), kWarpThreads, 0, context, count, y);
}

void EmptyCuda(const CudaContext& context, dim3 grid, int threads, int64_t shared_bytes) {
  Launch(EmptyKernel, grid, threads, shared_bytes, context);
}

}  // namespace pergola
