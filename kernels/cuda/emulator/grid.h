// The emulator's engine: runs a grid of fibers. For the emulator's own headers; kernels and tests
// see cuda_runtime.h and emulator.h.
#pragma once

#include <vector_types.h>

#include <cstdint>
#include <functional>

namespace pergola::emulator {

inline constexpr int kLanes = 32;
inline constexpr int kMaxThreads = 1024;
// On sm_90, the most of any.
inline constexpr int64_t kMaxDynamicSharedBytes = 227 << 10;

// One kernel with its arguments: body(argument) runs one thread of it.
struct KernelCall {
  void (*body)(const void* argument) = nullptr;
  const void* argument = nullptr;
};
struct LaunchShape {
  dim3 grid;
  int threads = 0;
  int64_t shared_bytes = 0;
  int compute_capability = 90;  // 10 * major + minor
  bool early = false;           // a GPU may begin it before the kernel before it has ended
};
// CHECKs that a GPU of that capability takes it.
void CheckLaunch(const LaunchShape& shape);
// Returns when all blocks have run. `previous`, where it is not empty, runs when all threads of the
// first block await it, on a thread of its own, since it may be a grid with shared memory too.
void RunGrid(const KernelCall& call, const LaunchShape& shape,
             const std::function<void()>& previous);
// The same for a one-dimensional grid whose blocks may wait for blocks of other launches: all of
// them run at once, each on an OS thread of its own, after `previous`.
void RunResidentGrid(const KernelCall& call, const LaunchShape& shape,
                     const std::function<void()>& previous);

// The rest is called by a running CUDA thread.

// Ends the process: "block (x, y, z), thread t: what".
[[noreturn]] void KernelError(const char* what);

// Ends the process if the launch's GPU is older than `capability`.
void RequireCapability(const char* operation, int capability);

// Waits until all threads of the block are here; returns how many gave a `predicate` other than 0.
int BlockBarrier(const char* operation, int predicate);

// Until `previous` of RunGrid has run. Every thread of an early grid calls it, or the process ends.
void AwaitPreviousKernel();

// Waits until all 32 lanes of the warp are here with the same `operation`. The last one to come
// calls compute with the requests of all lanes; requests live on the lanes' stacks until then.
void WarpCollective(const char* operation, void* request, void (*compute)(void* const* requests));

// The same, typed: R is the request of one lane.
template <typename R, void (*kCompute)(R* const*)>
void WarpCompute(const char* operation, R* request) {
  WarpCollective(operation, request, [](void* const* requests) {
    R* lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<R*>(requests[i]);
    kCompute(lanes);
  });
}

// The block's dynamic shared memory, 128-byte aligned.
void* DynamicSharedMemory();
// Ends the process if [pointer, pointer + bytes) is not aligned to `alignment`, or lies in the
// dynamic shared memory's reserve but beyond what the launch asked for.
void CheckAccess(const char* operation, const void* pointer, int64_t bytes, int64_t alignment);

void CopyAsync(void* shared, const void* global, bool valid);
void CopyAsyncCommitGroup();
void CopyAsyncWaitGroup(int pending);

}  // namespace pergola::emulator
