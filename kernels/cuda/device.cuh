// The bottom of all CUDA kernels: launch, warp and block sums, asynchronous copies, tensor core
// fragments, conversions. The only file with PTX, launches or __CUDA_ARCH__: kernels are
// written against what is declared here, so that g++ compiles them too, against the emulator
// (kernels/cuda/emulator), which brings its own version of the second half.
//
// Warp functions are called by all 32 lanes of a warp, block functions by all threads of a block.
//
// Fragments, from the PTX ISA, section "Warp-level matrix instructions", m16n8k16, A by rows, B by
// columns, two elements per register (the lower index in the lower bits). With g = lane / 4 and t =
// lane % 4:
//   a[0]: row g,     k = 2 t, 2 t + 1            b[0]: k = 2 t, 2 t + 1,     column g
//   a[1]: row g + 8, the same k                  b[1]: k = 2 t + 8, 2 t + 9, column g
//   a[2]: row g,     k = 2 t + 8, 2 t + 9
//   a[3]: row g + 8, the same k                  d[0], d[1]: row g,     columns 2 t, 2 t + 1
//                                                d[2], d[3]: row g + 8, columns 2 t, 2 t + 1
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "base/check.h"
#include "kernels/cuda/context.h"

namespace pergola {

inline constexpr int kWarpThreads = 32;
// What a block may have of dynamic shared memory without asking (48 KiB less what it has in static
// __shared__ arrays), and what it may have at most on sm_90 (163 KiB on sm_80, 64 KiB on sm_75: the
// launcher's business; static arrays count too).
inline constexpr int64_t kSharedBytesUnasked = 32 << 10;
inline constexpr int64_t kMaxSharedBytes = 227 << 10;

// Enqueues `kernel` on the context's stream; if CUDA refuses it, the context keeps that. Raises the
// kernel's limit of dynamic shared memory where needed. Where the context says so, the kernel may
// begin while the one before it still runs (programmatic dependent launch, CUDA C++ programming
// guide): so every kernel's first action is BeginKernel.
template <typename... P, typename... A>
void Launch(void (*kernel)(P...), dim3 grid, int threads, int64_t shared_bytes,
            const CudaContext& context, A... args);

// The same for a kernel whose blocks wait for blocks of launches on other GPUs. A waiting block
// keeps its place on a multiprocessor, so all blocks of the grid must find one at once, or two GPUs
// may each hold blocks that wait for what the other has not begun. The caller chooses a grid that
// fits; nothing else on the GPU may wait for this launch.
template <typename... P, typename... A>
void LaunchResident(void (*kernel)(P...), int blocks, int threads, const CudaContext& context,
                    A... args);

// Says that the next kernel on the stream may begin as soon as all blocks of this one have. It gets
// the machine's free places and what comes before its AwaitPrevious done while this one works.
__device__ void LetNextBegin();
// Returns when all kernels before this one have ended and what they wrote can be read. Called by
// every thread, before it reads what any kernel writes and before it writes anything; what a kernel
// does before it may read only what no kernel ever writes (weights).
__device__ void AwaitPrevious();
__device__ inline void BeginKernel() {
  LetNextBegin();
  AwaitPrevious();
}

// The block's dynamic shared memory, 128-byte aligned.
template <typename T>
__device__ T* DynamicShared();

// Sum and maximum over the warp in a butterfly (distance 16, 8, 4, 2, 1): all lanes get the same
// bits.
__device__ float WarpSum(float value);
__device__ float WarpMax(float value);

// shared[0..16) = global[0..16), both 16-byte aligned, or zeros if not valid (`global` is not read
// then). Seen by the calling thread after the CopyAsyncWait that covers its group, by others after
// a barrier behind that. Commit ends a group; Wait<n> returns when all but the newest n groups are
// there. Plain copies below sm_80.
__device__ void CopyAsync16(void* shared, const void* global, bool valid);
__device__ void CopyAsyncCommit();
template <int kPending>
__device__ void CopyAsyncWait();

// Four 8 x 8 matrices of 16-bit elements: lane 8 i + j gives the address of row j (16 bytes,
// 16-byte aligned) of matrix i; register i holds elements 2 t, 2 t + 1 of row g of matrix i, or of
// column g if transposed.
__device__ void LoadMatrix4(uint32_t (&r)[4], const void* shared_row);
__device__ void LoadMatrix4Transposed(uint32_t (&r)[4], const void* shared_row);

// d += a b, m16n8k16, f32 accumulation; T is __half or __nv_bfloat16 (which traps below sm_80).
template <typename T>
__device__ void Mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
// d = a b: saves the instructions that make d zero.
template <typename T>
__device__ void Mma16816Zero(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

// 16 bytes that nobody will read again soon (weights): past the L1 cache. 16-byte aligned, and not
// written by the running kernel.
__device__ uint4 LoadOnce16(const void* global);

// Two e4m3 to nearest even, `low` in bits 0 to 7, `high` in 8 to 15: F32ToE4M3 of model/dtype.h.
__device__ uint32_t PackE4M3(float low, float high);
// Memory that several GPUs see. LoadPeer16 reads 16 bytes (aligned) from another GPU's memory past
// the caches that do not know of its writes. A thread that has read a flag's new value with
// LoadAcquireSystem sees what was written before the StoreReleaseSystem that put it there: by the
// storing thread, and by the threads of its block before a barrier in front of the store (PTX ISA,
// section "Memory consistency model": release and acquire patterns, causality order).
__device__ uint4 LoadPeer16(const void* global);
__device__ uint64_t LoadAcquireSystem(const uint64_t* flag);
__device__ void StoreReleaseSystem(uint64_t* flag, uint64_t value);
// A clock that counts nanoseconds from any moment, in steps of up to a few microseconds.
__device__ uint64_t DeviceNanoseconds();
// Between two looks at a flag. Lanes of a warp must not wait for each other around it.
__device__ void SpinPause();

// (a & mask) | or_bits, in one instruction.
__device__ uint32_t AndOr(uint32_t a, uint32_t mask, uint32_t or_bits);

// 2^x, relative error 2^-22; results below 2^-126 are zero.
__device__ float FastExp2(float x);

// T is float, __half or __nv_bfloat16; FromFloat rounds to nearest even.
template <typename T>
__device__ float ToFloat(T value);
template <typename T>
__device__ T FromFloat(float value);

template <>
__device__ inline float ToFloat<float>(float value) {
  return value;
}
template <>
__device__ inline float ToFloat<__half>(__half value) {
  return __half2float(value);
}
template <>
__device__ inline float ToFloat<__nv_bfloat16>(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
template <>
__device__ inline float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ inline __half FromFloat<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// The same by instructions that every device has.
__device__ inline uint32_t EncodeE4M3(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 24 & 0x80;
  uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return 0x7f;
  size = size < 0x43e00000 ? size : 0x43e00000;  // 448
  if (size < 0x3c800000) {                       // 2^-6
    float sum;
    memcpy(&sum, &size, sizeof(sum));
    sum += 16384.0F;  // leaves a multiple of 2^-9 in the last bits
    memcpy(&size, &sum, sizeof(size));
    return sign | (size - 0x46800000);
  }
  return sign | (((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120 << 3));
}

// Sum and maximum over the block, the same bits for all threads, whatever their number. `scratch`
// is 32 floats of shared memory; the next BlockSum or BlockMax may use it at once, others after a
// barrier.
__device__ inline float BlockSum(float value, float* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int warps = static_cast<int>(blockDim.x) / kWarpThreads;
  value = WarpSum(value);
  __syncthreads();  // the last call's readers are done
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return WarpSum(lane < warps ? scratch[lane] : 0.0F);
}

__device__ inline float BlockMax(float value, float* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int warps = static_cast<int>(blockDim.x) / kWarpThreads;
  value = WarpMax(value);
  __syncthreads();
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  return WarpMax(scratch[lane < warps ? lane : 0]);
}

// Whether the next launch may overlap with the kernel before it; it is itself a kernel to overlap
// with.
inline bool BeginsEarly(const CudaContext& context) {
  return context.after_kernel != nullptr && std::exchange(*context.after_kernel, true);
}

inline std::string DescribeLaunch(dim3 grid, int threads, int64_t shared_bytes, cudaError_t error) {
  return "launch of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
         std::to_string(grid.z) + " blocks of " + std::to_string(threads) + " threads with " +
         std::to_string(shared_bytes) + " bytes of shared memory: " + CudaWords(error);
}

}  // namespace pergola

#ifdef PERGOLA_CUDA_EMULATOR  // defined by the emulator's cuda_runtime.h
#include "kernels/cuda/emulator/device_emulated.h"
#else

namespace pergola {

// CUDA copies the values before it returns.
template <typename... P>
cudaError_t LaunchValues(void (*kernel)(P...), dim3 grid, int threads, int64_t shared_bytes,
                         const CudaContext& context, P... values) {
  void* pointers[] = {const_cast<void*>(static_cast<const void*>(&values))..., nullptr};
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = context.stream;
  config.attrs = &overlap;
  config.numAttrs = BeginsEarly(context) ? 1 : 0;
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
}

template <typename... P, typename... A>
void Launch(void (*kernel)(P...), dim3 grid, int threads, int64_t shared_bytes,
            const CudaContext& context, A... args) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedBytesUnasked) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    error = LaunchValues(kernel, grid, threads, shared_bytes, context, static_cast<P>(args)...);
  }
  if (error != cudaSuccess) {
    KeepRefusal(context, DescribeLaunch(grid, threads, shared_bytes, error));
  }
}

template <typename... P, typename... A>
void LaunchResident(void (*kernel)(P...), int blocks, int threads, const CudaContext& context,
                    A... args) {
  Launch(kernel, dim3(static_cast<unsigned>(blocks)), threads, 0, context, args...);
}

__device__ inline void LetNextBegin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

__device__ inline void AwaitPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

template <typename T>
__device__ T* DynamicShared() {
  extern __shared__ __align__(128) unsigned char pergola_dynamic_shared[];
  return reinterpret_cast<T*>(pergola_dynamic_shared);
}

__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffff, value, distance);
  }
  return value;
}

__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, distance));
  }
  return value;
}

// Where PTX addresses shared memory: 32 bits from its beginning.
__device__ inline uint32_t SharedAddress(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

__device__ inline void CopyAsync16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  const int bytes = valid ? 16 : 0;  // what lacks to 16 is filled with zeros
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes)
               : "memory");
#else
  *static_cast<uint4*>(shared) =
      valid ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#endif
}

__device__ inline void CopyAsyncCommit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

template <int kPending>
__device__ void CopyAsyncWait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

__device__ inline void LoadMatrix4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

__device__ inline void LoadMatrix4Transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(shared_row))
               : "memory");
}

template <>
__device__ inline void Mma16816<__half>(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  // Turing has k = 8: the lower half of k is a[0], a[1], b[0], the upper a[2], a[3], b[1].
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}

template <>
__device__ inline void Mma16816<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // Turing has no bf16: the worker converts to f16 there
#endif
}

template <typename T>
__device__ void Mma16816Zero(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %10, %10, %10};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0F));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%10, %10, %10, %10};\n"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.0F));
  }
#else
  d[0] = d[1] = d[2] = d[3] = 0;
  Mma16816<T>(d, a, b);
#endif
}

__device__ inline uint4 LoadOnce16(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(global)));
  return v;
}

__device__ inline uint4 LoadPeer16(const void* global) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(global))
               : "memory");
  return v;
}

__device__ inline uint64_t LoadAcquireSystem(const uint64_t* flag) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];\n"
               : "=l"(value)
               : "l"(__cvta_generic_to_global(flag))
               : "memory");
  return value;
}

__device__ inline void StoreReleaseSystem(uint64_t* flag, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;\n" ::"l"(__cvta_generic_to_global(flag)),
               "l"(value)
               : "memory");
}

__device__ inline uint64_t DeviceNanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;\n" : "=l"(now));
  return now;
}

__device__ inline void SpinPause() {
  __nanosleep(20);
}

// Where both are constants the compiler would take two instructions rather than a register.
__device__ inline uint32_t AndOr(uint32_t a, uint32_t mask, uint32_t or_bits) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(result) : "r"(a), "r"(mask), "r"(or_bits));
  return result;
}

__device__ inline float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline uint32_t PackE4M3(float low, float high) {
#if __CUDA_ARCH__ >= 890
  uint16_t packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return EncodeE4M3(low) | EncodeE4M3(high) << 8;
#endif
}

}  // namespace pergola

#endif  // PERGOLA_CUDA_EMULATOR
