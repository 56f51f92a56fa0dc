// Where ops run: a device, its thread pool and a workspace. Ops are asynchronous by contract: on
// the CPU each returns when done, on a GPU when enqueued; callers wait with Synchronize before they
// look at results on the host.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/tensor.h"

namespace pergola {

class ThreadPool;

enum class Device : uint8_t { kCpu, kCuda };

// The instruction set a CPU stream uses; chosen at run time, or forced (tests, --cpu-target).
enum class CpuTarget : uint8_t { kReference, kPortable, kAvx2, kAvx512 };

struct StreamOptions {
  int threads = 1;
  // First CPU the pool pins its threads to (the caller of Stream::Cpu too), in steps of one; -1: do
  // not pin.
  int first_cpu = -1;
  // For the ops that say so: today sampling (SampleWorkspaceBytes, per thread). Matmul and
  // attention use the pool's own scratch.
  int64_t workspace_bytes = 0;
};

// One per rank; used from the rank's main thread only.
class Stream {
 public:
  // A CPU stream with the best target of this machine.
  static std::unique_ptr<Stream> Cpu(const StreamOptions& options);
  // A CPU stream with a stated target; CHECKs that the machine has it (see CpuTargetSupported).
  static std::unique_ptr<Stream> Cpu(const StreamOptions& options, CpuTarget target);
  ~Stream();

  Device device() const { return Device::kCpu; }
  CpuTarget cpu_target() const { return target_; }
  int threads() const;
  ThreadPool& pool() { return *pool_; }
  // Scratch of at least `bytes`, valid until the next op on this stream. CHECKs against the planned
  // size.
  uint8_t* Workspace(int64_t bytes);
  // Returns when all ops enqueued so far are done. Nothing to do on the CPU.
  void Synchronize() {}
  // "avx512": part of the numerics id and of messages.
  std::string name() const;

 private:
  Stream();
  CpuTarget target_ = CpuTarget::kReference;
  std::unique_ptr<ThreadPool> pool_;
  HostBuffer workspace_;
};

bool CpuTargetSupported(CpuTarget target);
const char* CpuTargetName(CpuTarget target);

}  // namespace pergola
