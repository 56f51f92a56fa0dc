// Kernels that break CUDA's rules, each in one way: what the emulator must show.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"

namespace pergola {

enum class Fault : uint8_t {
  kNone,               // y = x reversed through shared memory
  kNoBarrier,          // the same without __syncthreads
  kNoWarpBarrier,      // each warp's part reversed, without __syncwarp
  kNoWait,             // y = x through CopyAsync16 that nobody waits for
  kShortWait,          // the same in two groups, of which the wait covers one
  kUnwrittenShared,    // y = dynamic shared memory that nobody wrote
  kExitAtBarrier,      // thread 5 returns before __syncthreads
  kExitInWarp,         // lane 5 returns before a shuffle
  kDifferentWaits,     // lane 3 at __syncthreads, the others in a shuffle
  kDifferentShuffles,  // lane 3 in __shfl_xor_sync, the others in __shfl_sync
  kPartialMask,        // a shuffle of 16 lanes
  kWriteBeyond,        // writes behind its dynamic shared memory
  kCopyBeyond,         // CopyAsync16 to behind it
  kMisalignedCopy,     // CopyAsync16 from an odd float
};

// x and y are f32, one per thread of the one block. Dynamic shared memory: 4 bytes per thread.
void RunFault(const CudaContext& context, Fault fault, int threads, const float* x, float* y);

// When a kernel reads what the kernel before it writes.
enum class Reads : uint8_t { kAfterAwait, kBeforeAwait, kWithoutAwait };
// y = x, then z = y, by one thread each; on `context` the second kernel may begin early.
void RunOverlap(const CudaContext& context, Reads reads, const float* x, float* y, float* z);

// y[i] is the i-th block (threads = 32) that ran; `count` is 0 before.
void BlockOrderCuda(const CudaContext& context, int blocks, int* count, int* y);

// Launches of a kernel that does nothing.
void EmptyCuda(const CudaContext& context, dim3 grid, int threads, int64_t shared_bytes);

}  // namespace pergola
