// The emulator's side of kernels/cuda/device.cuh, which includes it: see there for what each
// function is.
#pragma once

#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "kernels/cuda/context.h"
#include "kernels/cuda/emulator/fragments.h"
#include "kernels/cuda/emulator/grid.h"
#include "kernels/cuda/emulator/stream.h"

namespace pergola {

template <typename... P, typename... A>
void Launch(void (*kernel)(P...), dim3 grid, int threads, int64_t shared_bytes,
            const CudaContext& context, A... args) {
  static_assert(sizeof...(P) == sizeof...(A), "a launch gives the kernel all of its arguments");
  const emulator::LaunchShape shape = {grid, threads, shared_bytes, context.compute_capability,
                                       BeginsEarly(context)};
  emulator::CheckLaunch(shape);
  // The arguments are copied now, as CUDA does, and read when the launch runs.
  using Call = std::pair<void (*)(P...), std::tuple<P...>>;
  const Call call(kernel, std::tuple<P...>(static_cast<P>(args)...));
  const auto run = [=](const emulator::Work& previous) {
    const auto body = [](const void* argument) {
      const Call& own = *static_cast<const Call*>(argument);
      std::apply(own.first, own.second);
    };
    emulator::RunGrid({body, &call}, shape, previous);
  };
  const cudaError_t enqueued = emulator::EnqueueKernel(context.stream, run, shape.early);
  PERGOLA_CHECK_MSG(enqueued == cudaSuccess,
                    std::string("launch: ") + cudaGetErrorString(enqueued));
}

inline void LetNextBegin() {}
inline void AwaitPrevious() {
  emulator::AwaitPreviousKernel();
}

template <typename T>
T* DynamicShared() {
  return static_cast<T*>(emulator::DynamicSharedMemory());
}

inline float WarpSum(float value) {
  return emulator::WarpButterfly<emulator::Add>("WarpSum", value);
}
inline float WarpMax(float value) {
  return emulator::WarpButterfly<emulator::Max>("WarpMax", value);
}

inline void CopyAsync16(void* shared, const void* global, bool valid) {
  emulator::CopyAsync(shared, global, valid);
}
inline void CopyAsyncCommit() {
  emulator::CopyAsyncCommitGroup();
}
template <int kPending>
void CopyAsyncWait() {
  emulator::CopyAsyncWaitGroup(kPending);
}

inline void LoadMatrix4(uint32_t (&r)[4], const void* shared_row) {
  emulator::LoadMatrix("LoadMatrix4", r, shared_row, false);
}
inline void LoadMatrix4Transposed(uint32_t (&r)[4], const void* shared_row) {
  emulator::LoadMatrix("LoadMatrix4Transposed", r, shared_row, true);
}

template <>
inline void Mma16816<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::Mma<emulator::HalfFormat>("Mma16816<__half>", d, a, b);
}
template <>
inline void Mma16816<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::RequireCapability("Mma16816<__nv_bfloat16>", 80);
  emulator::Mma<emulator::BFloat16Format>("Mma16816<__nv_bfloat16>", d, a, b);
}

inline uint4 LoadOnce16(const void* global) {
  emulator::CheckAccess("LoadOnce16", global, 16, 16);
  uint4 v;
  std::memcpy(&v, global, sizeof(v));
  return v;
}

inline uint32_t PackE4M3(float low, float high) {
  return EncodeE4M3(low) | EncodeE4M3(high) << 8;
}

inline float FastExp2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126F ? 0.0F : y;
}

}  // namespace pergola
