// The emulator's side of kernels/cuda/device.cuh, which includes it: see there for what each
// function is.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <tuple>
#include <utility>

#include "kernels/cuda/context.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/fragments.h"
#include "kernels/cuda/emulator/grid.h"
#include "kernels/cuda/emulator/peers.h"
#include "kernels/cuda/emulator/stream.h"

namespace pergola {

namespace emulator {

// How a grid runs: RunGrid or RunResidentGrid.
using GridRunner = void (*)(const KernelCall& call, const LaunchShape& shape,
                            const Action& previous);

template <typename... P, typename... A>
void LaunchWith(GridRunner runner, void (*kernel)(P...), const LaunchShape& shape,
                const CudaContext& context, A... args) {
  static_assert(sizeof...(P) == sizeof...(A), "a launch gives the kernel all of its arguments");
  CheckLaunch(shape);
  // The arguments are copied now, as CUDA does, and read when the launch runs.
  using Call = std::pair<void (*)(P...), std::tuple<P...>>;
  const Call call(kernel, std::tuple<P...>(static_cast<P>(args)...));
  const auto run = [=](const Action& previous) {
    const auto body = [](const void* argument) {
      const Call& own = *static_cast<const Call*>(argument);
      std::apply(own.first, own.second);
    };
    runner({body, &call}, shape, previous);
  };
  cudaError_t error = TakeCudaFailure(FailingCall::kLaunch);
  if (error == cudaSuccess) error = EnqueueKernel(context.stream, run, shape.early);
  if (error != cudaSuccess) {
    KeepRefusal(context, DescribeLaunch(shape.grid, shape.threads, shape.shared_bytes, error));
  }
}

}  // namespace emulator

template <typename... P, typename... A>
void Launch(void (*kernel)(P...), dim3 grid, int threads, int64_t shared_bytes,
            const CudaContext& context, A... args) {
  const emulator::LaunchShape shape = {grid, threads, shared_bytes, context.compute_capability,
                                       BeginsEarly(context)};
  emulator::LaunchWith(emulator::RunGrid, kernel, shape, context, args...);
}

template <typename... P, typename... A>
void LaunchResident(void (*kernel)(P...), int blocks, int threads, const CudaContext& context,
                    A... args) {
  const emulator::LaunchShape shape = {dim3(static_cast<unsigned>(blocks)), threads, 0,
                                       context.compute_capability, BeginsEarly(context)};
  emulator::LaunchWith(emulator::RunResidentGrid, kernel, shape, context, args...);
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

template <typename T>
void Mma16816Zero(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  d[0] = d[1] = d[2] = d[3] = 0;
  Mma16816<T>(d, a, b);
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

inline uint4 LoadPeer16(const void* global) {
  emulator::CheckAccess("LoadPeer16", global, 16, 16);
  uint4 v;
  std::memcpy(&v, global, sizeof(v));
  return v;
}
inline uint64_t LoadAcquireSystem(const uint64_t* flag) {
  emulator::CheckAccess("LoadAcquireSystem", flag, 8, 8);
  return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}
inline void StoreReleaseSystem(uint64_t* flag, uint64_t value) {
  emulator::CheckAccess("StoreReleaseSystem", flag, 8, 8);
  emulator::CheckReach("StoreReleaseSystem", flag);
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}
inline uint64_t DeviceNanoseconds() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                               std::chrono::nanoseconds(1));
}
// Only other OS threads go on meanwhile: lanes that wait for each other in a loop hang here, as
// they did on GPUs before Volta.
inline void SpinPause() {
  std::this_thread::sleep_for(std::chrono::microseconds(20));
}

inline uint32_t AndOr(uint32_t a, uint32_t mask, uint32_t or_bits) {
  return (a & mask) | or_bits;
}

inline float FastExp2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126F ? 0.0F : y;
}

}  // namespace pergola
