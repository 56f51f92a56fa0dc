// Runs CUDA kernels on the CPU, for tests: the same .cu sources, compiled by g++ against the
// headers in include/, which take the place of the toolkit's. It shows whether a kernel computes
// the right thing and keeps CUDA's rules; it says nothing about speed, and nothing about what only
// real parallelism does.
//
// A launch runs its blocks one after the other on the calling thread, each CUDA thread as a fiber.
// A block runs warp by warp, and each warp lane by lane, until all threads wait at a barrier. What
// breaks CUDA's rules ends the process with a line that names block, thread and operation: a
// barrier that not all threads of the block reach, a warp function that not all 32 lanes reach,
// misaligned copies, shared memory that was not asked for, impossible launches.
//
// Blocks that wait for each other hang, but for LaunchResident's: those run at once, each on an OS
// thread. Ranks are OS threads, or processes that share memory through cudaIpc*.
//
// To make mistakes show as wrong results:
//  - the order of blocks, warps and lanes can be set (below): a missing barrier gives other values
//    in another order;
//  - device memory from cudaMalloc and dynamic shared memory are filled with 0xff bytes (NaN in
//    every float format). Static __shared__ arrays are not: they are thread_local variables whose
//    places and sizes no code can list, and keep what the last block left;
//  - CopyAsync's bytes land at the CopyAsyncWait that covers them, and are 0xff until then.
//
// A prepared graph takes device memory, as the driver's do, though not as much.
//
// Work on streams is done at once, in the order of the calls, unless it is captured or deferred, or
// stands behind work that waits for other ranks (nccl.h): such a stream goes on by itself, on a
// thread of its own, and when it is asked for or waited for; with SetDeferred or SetOverlap only
// then.
#pragma once

#include <cstdint>

namespace pergola::emulator {

enum class Order : uint8_t { kAscending, kDescending, kShuffled };

// For launches of the calling OS thread from now on; kAscending at first. A shuffle is drawn from
// `seed` anew for each launch, block, and round of a warp.
void SetOrder(Order order, uint64_t seed = 0);

// If set, in all threads, work on a stream is not done until something waits for it (the stream, an
// event behind it, the device, a copy to pageable memory), and no earlier: a host that does not
// wait reads what was there before. cudaDeviceSynchronize and cudaFree wait for the calling
// thread's streams. Off at first.
void SetDeferred(bool deferred);

// If set, in all threads, a kernel that may begin before the one before it has ended (device.cuh,
// Launch) does: one block gets as far as AwaitPrevious, then the kernel before it runs, then the
// rest. What it reads too early has its old value. Kernels so overlap in pairs. Off at first.
void SetOverlap(bool overlap);

// What cudaGetDeviceProperties and cudaMemGetInfo say, in all threads. At first the environment
// variables PERGOLA_EMULATED_GPUS and PERGOLA_EMULATED_GPU_BYTES give count and memory_bytes, and
// PERGOLA_EMULATED_DRIVER the driver's version, where they are set.
struct DeviceModel {
  int count = 1;
  int major = 9;
  int minor = 0;
  int multiprocessors = 4;
  int64_t memory_bytes = int64_t{4} << 30;
  int64_t graph_node_bytes = 512;  // that a prepared graph takes for each of its nodes
  bool peers = true;               // devices reach each other's memory
  // Of CUDA. 0: there is no driver; older than the runtime's 13000: it refuses every device.
  int driver_version = 13000;
};
void SetDeviceModel(const DeviceModel& model);
DeviceModel GetDeviceModel();

// Allocations of device and of pinned memory so far, of all threads.
int64_t AllocationCount();

// Calls that can be told to fail.
enum class FailingCall : uint8_t {
  kLaunch,
  kWait,        // for a stream or an event, and asking whether it is there
  kCopy,        // asynchronous
  kMalloc,      // on the device
  kMallocHost,  // pinned
  kInstantiate,
  kProduct,    // cublasLtMatmul
  kPlan,       // every other call of cuBLASLt that a product makes
  kNccl,       // that enqueues
  kNcclAsync,  // what ncclCommGetAsyncError finds
};
inline constexpr int kAnyDevice = -1;
// From now on, in all threads whose device it is, the call after `passed` more of its kind gives
// `error` (a cudaError_t, cublasStatus_t or ncclResult_t; 0: none fails) and does nothing. One
// failure at a time, and once; but from an illegal address or a failed launch the device does not
// recover: CUDA's calls among the above give it until the next FailCall.
//
// Of programs whose main is the product's, the environment variable PERGOLA_EMULATED_FAILURE names
// a file that need not exist yet: "DEVICE CALL PASSED ERROR", "1 launch 40 719", is taken, and the
// file removed, by the first process that calls something here on that device. Calls are launch,
// wait, copy, malloc, malloc_host, instantiate, product, plan, nccl, nccl_async.
void FailCall(FailingCall call, int error, int64_t passed = 0, int device = kAnyDevice);

}  // namespace pergola::emulator
