// The CPU as a device: a thread pool, the instruction set that ops use, and a workspace for what
// stays on the host beside any device (sampling).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace pergola {

class ThreadPool;

// The instruction set a CPU stream uses; chosen at run time, or forced (tests, --cpu-target).
enum class CpuTarget : uint8_t { kReference, kPortable, kAvx2, kAvx512 };

struct StreamOptions {
  int threads = 1;
  // First CPU the pool pins its threads to (the caller of Create too), in steps of one; -1: do not
  // pin.
  int first_cpu = -1;
  // For the ops that say so: today sampling (SampleWorkspaceBytes, per thread). Matmul and
  // attention use the pool's own scratch.
  int64_t workspace_bytes = 0;
};

class CpuStream final : public Stream {
 public:
  // With the best target of this machine.
  static std::unique_ptr<CpuStream> Create(const StreamOptions& options);
  // With a stated target; CHECKs that the machine has it (see CpuTargetSupported).
  static std::unique_ptr<CpuStream> Create(const StreamOptions& options, CpuTarget target);
  ~CpuStream() override;

  CpuTarget target() const { return target_; }
  int threads() const;
  ThreadPool& pool() { return *pool_; }
  // Scratch of at least `bytes`, valid until the next op on this stream. CHECKs against the planned
  // size.
  uint8_t* Workspace(int64_t bytes);

  Device device() const override { return Device::kCpu; }
  std::string name() const override;
  std::string where() const override { return "the CPU"; }
  DType ActivationFor(DType /*weights*/) const override { return DType::kF32; }
  CpuStream& host() override { return *this; }
  absl::Status Reserve(int64_t /*bytes*/) override { return absl::OkStatus(); }
  int64_t ReservedBytesLeft() const override { return 0; }
  void Seal() override { sealed_ = true; }
  uint8_t* Allocate(int64_t bytes, Place place) override;
  void Free(uint8_t* memory, Place place) override;
  int64_t TotalBytes() const override { return 0; }
  int64_t WorkspaceBytes(const WorkspaceShape& /*shape*/) const override { return 0; }
  void UseWorkspace(uint8_t* /*memory*/, int64_t /*bytes*/) override {}
  int64_t AvailableBytes() const override;
  void CopyToDevice(void* to, const void* from, int64_t bytes) override;
  void CopyToHost(void* to, const void* from, int64_t bytes) override;
  absl::Status Synchronize() override { return absl::OkStatus(); }
  bool Idle() override { return true; }
  std::unique_ptr<StreamEvent> MakeEvent() override { return std::make_unique<StreamEvent>(); }
  void Record(StreamEvent& /*event*/) override {}
  bool Reached(StreamEvent& /*event*/) override { return true; }
  absl::Status Wait(StreamEvent& /*event*/) override { return absl::OkStatus(); }
  DeviceSamplerBytes SamplerBytes(const DeviceSamplerShape& shape) const override;
  absl::StatusOr<std::unique_ptr<DeviceSampler>> MakeSampler(
      const DeviceSamplerShape& shape) override;
  bool records() const override { return false; }
  void BeginRecording() override;
  absl::StatusOr<std::unique_ptr<Recording>> EndRecording() override;
  void Replay(const Recording& recording) override;
  int64_t RecordedBytes() const override { return 0; }

  void Run(const EmbeddingArgs& args) override;
  void Run(const RmsNormArgs& args) override;
  void Run(const LayerNormArgs& args) override;
  void Run(const HeadNormArgs& args) override;
  void Run(const RopeAndStoreArgs& args) override;
  void Run(const AttentionArgs& args) override;
  void Run(const ActivateArgs& args) override;
  void Run(const SoftCapArgs& args) override;
  void Run(const AddArgs& args) override;
  void Run(const CopyRowsArgs& args) override;
  void Run(const CopyColumnsArgs& args) override;
  void Run(const ScatterArgs& args) override;
  void Run(const TakeTokensArgs& args) override;
  void Run(const CopyBlockArgs& args) override;
  void Run(const MatmulArgs& args) override;

 private:
  CpuStream(const StreamOptions& options, CpuTarget target);

  const CpuTarget target_;
  std::unique_ptr<ThreadPool> pool_;
  HostBuffer workspace_;
  bool sealed_ = false;
};

bool CpuTargetSupported(CpuTarget target);
const char* CpuTargetName(CpuTarget target);

}  // namespace pergola
