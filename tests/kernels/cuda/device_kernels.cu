#include "tests/kernels/cuda/device_kernels.h"

#include "kernels/cuda/device.cuh"

namespace pergola {
namespace {

__global__ void SumsKernel(const float* x, float* sums, float* maxima, float* warp_sums) {
  __shared__ float scratch[32];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const float sum = BlockSum(x[i], scratch);
  const float largest = BlockMax(x[i], scratch);
  warp_sums[i] = WarpSum(x[i]);
  if (threadIdx.x == blockDim.x - 1) {
    sums[blockIdx.x] = sum;
    maxima[blockIdx.x] = largest;
  }
}

constexpr int kStages = 3;
constexpr int kCopyThreads = 128;
constexpr int kTileValues = 4 * kCopyThreads;

__device__ void FetchTile(const float* x, int64_t values, int64_t tiles, int64_t tile,
                          float* shared) {
  const int at = static_cast<int>(threadIdx.x) * 4;
  if (tile < tiles) {
    const int64_t from = tile * kTileValues + at;
    CopyAsync16(shared + tile % kStages * kTileValues + at, x + from, from < values);
  }
  CopyAsyncCommit();
}

__global__ void StagedCopyKernel(const float* x, int64_t values, int64_t tiles, float* y) {
  float* shared = DynamicShared<float>();
  for (int tile = 0; tile < kStages - 1; ++tile) FetchTile(x, values, tiles, tile, shared);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    CopyAsyncWait<kStages - 2>();
    __syncthreads();
    FetchTile(x, values, tiles, tile + kStages - 1, shared);
    // Another thread's part, so that the barrier is needed.
    const int at = kTileValues - 4 - static_cast<int>(threadIdx.x) * 4;
    for (int i = 0; i < 4; ++i) {
      y[tile * kTileValues + at + i] = shared[tile % kStages * kTileValues + at + i];
    }
  }
}

__global__ void LoadMatrixKernel(const uint16_t* x, bool transposed, uint32_t* r) {
  __shared__ __align__(16) uint16_t shared[4 * 64];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 4 * 64; i += kWarpThreads) shared[i] = x[i];
  __syncwarp();
  uint32_t registers[4];
  if (transposed) {
    LoadMatrix4Transposed(registers, shared + lane * 8);
  } else {
    LoadMatrix4(registers, shared + lane * 8);
  }
  for (int i = 0; i < 4; ++i) r[lane * 4 + i] = registers[i];
}

__device__ uint32_t Pack(uint16_t low, uint16_t high) {
  return static_cast<uint32_t>(high) << 16 | low;
}

template <typename T>
__global__ void MmaKernel(const uint16_t* a, const uint16_t* b, const float* c, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4, t = static_cast<int>(threadIdx.x) % 4;
  uint32_t a_registers[4], b_registers[2];
  float sums[4];
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i % 2), k = 2 * t + 8 * (i / 2);
    a_registers[i] = Pack(a[row * 16 + k], a[row * 16 + k + 1]);
    sums[i] = c[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  }
  for (int i = 0; i < 2; ++i) {
    const int k = 2 * t + 8 * i;
    b_registers[i] = Pack(b[k * 8 + g], b[(k + 1) * 8 + g]);
  }
  Mma16816<T>(sums, a_registers, b_registers);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sums[i];
}

template <typename T>
__global__ void ConvertKernel(const float* x, int64_t count, uint16_t* bits, float* back) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const T value = FromFloat<T>(x[i]);
  reinterpret_cast<T*>(bits)[i] = value;
  back[i] = ToFloat(value);
}

__global__ void PackE4M3Kernel(const float* x, int64_t count, uint8_t* y) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (4 * i >= count) return;
  const uint4 v = LoadOnce16(x + 4 * i);
  float values[4];
  memcpy(values, &v, sizeof(values));
  const uint32_t packed = PackE4M3(values[0], values[1]) | PackE4M3(values[2], values[3]) << 16;
  reinterpret_cast<uint32_t*>(y)[i] = packed;
}

__global__ void AddKernel(const float* x, float addend, int64_t count, float* y) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) y[i] = x[i] + addend;
}

__global__ void VotesKernel(int* y) {
  const int lane = static_cast<int>(threadIdx.x);
  constexpr unsigned kAll = 0xffffffff;
  y[lane * 8] = __shfl_sync(kAll, lane, 7);
  y[lane * 8 + 1] = __shfl_up_sync(kAll, lane, 3);
  y[lane * 8 + 2] = __shfl_down_sync(kAll, lane, 3);
  y[lane * 8 + 3] = __shfl_xor_sync(kAll, lane, 5, 8);
  y[lane * 8 + 4] = static_cast<int>(__ballot_sync(kAll, lane % 2));
  y[lane * 8 + 5] = __any_sync(kAll, lane == 31);
  y[lane * 8 + 6] = __all_sync(kAll, lane < 31);
  y[lane * 8 + 7] = __syncthreads_count(lane > 9);
}

dim3 BlocksFor(int64_t count, int threads) {
  return dim3(static_cast<unsigned>((count + threads - 1) / threads));
}

}  // namespace

void SumsCuda(const CudaContext& context, const float* x, int blocks, int threads, float* sums,
              float* maxima, float* warp_sums) {
  Launch(SumsKernel, dim3(static_cast<unsigned>(blocks)), threads, 0, context, x, sums, maxima,
         warp_sums);
}

void StagedCopyCuda(const CudaContext& context, const float* x, int64_t values,
                    int64_t padded_values, float* y) {
  Launch(StagedCopyKernel, dim3(1), kCopyThreads, kStages * kTileValues * int64_t{sizeof(float)},
         context, x, values, padded_values / kTileValues, y);
}

void LoadMatrixCuda(const CudaContext& context, const uint16_t* x, bool transposed, uint32_t* r) {
  Launch(LoadMatrixKernel, dim3(1), kWarpThreads, 0, context, x, transposed, r);
}

void MmaCuda(const CudaContext& context, DType dtype, const uint16_t* a, const uint16_t* b,
             const float* c, float* d) {
  PERGOLA_CHECK(dtype == DType::kF16 || dtype == DType::kBF16);
  Launch(dtype == DType::kF16 ? MmaKernel<__half> : MmaKernel<__nv_bfloat16>, dim3(1), kWarpThreads,
         0, context, a, b, c, d);
}

void ConvertCuda(const CudaContext& context, DType dtype, const float* x, int64_t count,
                 uint16_t* bits, float* back) {
  PERGOLA_CHECK(dtype == DType::kF16 || dtype == DType::kBF16);
  Launch(dtype == DType::kF16 ? ConvertKernel<__half> : ConvertKernel<__nv_bfloat16>,
         BlocksFor(count, 256), 256, 0, context, x, count, bits, back);
}

void PackE4M3Cuda(const CudaContext& context, const float* x, int64_t count, uint8_t* y) {
  Launch(PackE4M3Kernel, BlocksFor(count / 4, 64), 64, 0, context, x, count, y);
}

void AddCuda(const CudaContext& context, const float* x, float addend, int64_t count, float* y) {
  Launch(AddKernel, BlocksFor(count, 64), 64, 0, context, x, addend, count, y);
}

void VotesCuda(const CudaContext& context, int* y) {
  Launch(VotesKernel, dim3(1), kWarpThreads, 0, context, y);
}

}  // namespace pergola
