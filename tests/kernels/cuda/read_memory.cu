// See read_memory.h. Each thread has eight loads of 16 bytes under way, whole warps side by side:
// enough in flight for any memory there is.
#include "kernels/cuda/device.cuh"
#include "tests/kernels/cuda/read_memory.h"

namespace pergola {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 8;

__global__ void __launch_bounds__(kThreads)
    ReadKernel(const uint4* data, int64_t words, uint32_t* out) {
  const int64_t stride = gridDim.x * int64_t{kThreads};
  uint32_t sum = 0;
  int64_t at = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  for (; at + (kLoads - 1) * stride < words; at += kLoads * stride) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) loaded[i] = LoadOnce16(data + at + i * stride);
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      sum ^= loaded[i].x ^ loaded[i].y ^ loaded[i].z ^ loaded[i].w;
    }
  }
  for (; at < words; at += stride) sum ^= LoadOnce16(data + at).x;
  // Almost never, but the compiler does not know: the loads stay.
  if (sum == 0x9e3779b9U) *out = sum;
}

}  // namespace

void ReadMemoryCuda(const CudaContext& context, const void* data, int64_t bytes, uint32_t* out) {
  Launch(ReadKernel, dim3(static_cast<unsigned>(4 * context.multiprocessors)), kThreads, 0, context,
         static_cast<const uint4*>(data), bytes / 16, out);
}

}  // namespace pergola
