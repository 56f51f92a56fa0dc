// Where ops run: a device, its memory and its queue. Ops are asynchronous by contract: on the CPU
// each returns when done, on a GPU when enqueued; callers wait with Synchronize before they look at
// results on the host. The functions of decoder_ops.h and matmul.h check a contract and hand it to
// the stream, which is the one place that knows the device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"

namespace pergola {

class CpuStream;
class DeviceSampler;
struct DeviceSamplerBytes;
struct DeviceSamplerShape;
struct ActivateArgs;
struct AddArgs;
struct AttentionArgs;
struct CopyBlockArgs;
struct CopyColumnsArgs;
struct CopyRowsArgs;
struct EmbeddingArgs;
struct HeadNormArgs;
struct LayerNormArgs;
struct MatmulArgs;
struct RmsNormArgs;
struct RopeAndStoreArgs;
struct ScatterArgs;
struct SoftCapArgs;
struct TakeTokensArgs;

enum class Device : uint8_t { kCpu, kCuda };

// Of the device, or of the host where the device copies from and to it without a detour.
enum class Place : uint8_t { kDevice, kPinned };

// Ops that a stream has recorded instead of running them.
class Recording {
 public:
  virtual ~Recording() = default;
};

// A point in a stream's work.
class StreamEvent {
 public:
  virtual ~StreamEvent() = default;
};

// What a decoder asks of its device's scratch memory: every shape that its ops will have.
struct WorkspaceShape {
  struct Matrix {
    DType dtype = DType::kF32;
    int64_t rows = 0, columns = 0;
    int lead = 0;
  };
  std::vector<Matrix> matrices;
  DType activation = DType::kF32;
  int64_t step_rows = 0;
  int64_t heads = 0, head_dim = 0;
};

// One per rank; used from the rank's main thread only. Outlives every DeviceBuffer made with it.
class Stream {
 public:
  virtual ~Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  virtual Device device() const = 0;
  // "avx512", "cuda sm_90": part of the numerics id.
  virtual std::string name() const = 0;
  // "the CPU", "CUDA device 1": for messages.
  virtual std::string where() const = 0;
  // What activations are held in where `weights` (f32, bf16 or f16) suits the weights: f32 on the
  // CPU, on a GPU the same type if it has it.
  virtual DType ActivationFor(DType weights) const = 0;
  // The CPU stream of the rank, which does what stays on the host; itself on the CPU.
  virtual CpuStream& host() = 0;

  // Takes all device memory that Allocate will give from now on in one allocation of `bytes`:
  // Allocate cuts pieces off it, each followed by DevicePadding (model/device_piece.h), and what
  // does not fit is an error. It goes back to the device with its last piece, or when the next
  // Reserve replaces it. RESOURCE_EXHAUSTED naming the device. Nothing is done on the CPU.
  virtual absl::Status Reserve(int64_t bytes) = 0;
  // Bytes of the reservation that are not cut off yet; 0 on the CPU.
  virtual int64_t ReservedBytesLeft() const = 0;
  // Everything is loaded: an Allocate from now on is our mistake. On a GPU it stays with the stream
  // as an error that names what was asked for; on the CPU it is a failed CHECK.
  virtual void Seal() = 0;
  // Memory, zeroed. On a GPU that has no more, nullptr: Synchronize then tells.
  virtual uint8_t* Allocate(int64_t bytes, Place place) = 0;
  virtual void Free(uint8_t* memory, Place place) = 0;
  // Bytes of the device, and those of them that Allocate can still give; 0: unknown.
  virtual int64_t TotalBytes() const = 0;
  virtual int64_t AvailableBytes() const = 0;
  // Scratch that ops of these shapes need on a GPU, and what they are to use from now on (device
  // memory, borrowed). The CPU's threads have their own.
  virtual int64_t WorkspaceBytes(const WorkspaceShape& shape) const = 0;
  virtual void UseWorkspace(uint8_t* memory, int64_t bytes) = 0;
  // Enqueue a copy; the host's bytes are read or written at some time before Synchronize returns.
  virtual void CopyToDevice(void* to, const void* from, int64_t bytes) = 0;
  virtual void CopyToHost(void* to, const void* from, int64_t bytes) = 0;
  // Returns when all ops enqueued so far are done. An error of the device stays: it is returned
  // from then on, and ops enqueued after it do nothing. Always OK on the CPU.
  virtual absl::Status Synchronize() = 0;
  // Whether Synchronize would return at once.
  virtual bool Idle() = 0;

  // Points in the stream's work, made at load: nullptr if the device has no more, Synchronize then
  // tells. Record sets one to where the work stands now. Reached: whether all before it is done,
  // without waiting. Wait returns when it is, with the errors of Synchronize; after an error of the
  // device every event is reached.
  virtual std::unique_ptr<StreamEvent> MakeEvent() = 0;
  virtual void Record(StreamEvent& event) = 0;
  virtual bool Reached(StreamEvent& event) = 0;
  virtual absl::Status Wait(StreamEvent& event) = 0;

  // Choosing tokens on the device; its workspace is that of UseWorkspace. On the CPU there is none
  // (nullptr): SampleTasks does it.
  virtual DeviceSamplerBytes SamplerBytes(const DeviceSamplerShape& shape) const = 0;
  virtual absl::StatusOr<std::unique_ptr<DeviceSampler>> MakeSampler(
      const DeviceSamplerShape& shape) = 0;

  // Whether the stream can record. From BeginRecording on, ops are kept instead of run; nothing may
  // be synchronised, allocated or copied from the host until EndRecording. RESOURCE_EXHAUSTED
  // naming the device if that has no memory for the recording: the stream goes on as if nothing had
  // been recorded; other errors stay with it. Replay enqueues what was recorded, with the same
  // pointers.
  virtual bool records() const = 0;
  virtual void BeginRecording() = 0;
  virtual absl::StatusOr<std::unique_ptr<Recording>> EndRecording() = 0;
  virtual void Replay(const Recording& recording) = 0;
  // Device memory that recordings have taken, which the driver allocates by itself, also of a
  // sealed stream: as the device's free memory shrank while they were made.
  virtual int64_t RecordedBytes() const = 0;

  // The ops; called by the functions that check their contracts.
  virtual void Run(const EmbeddingArgs& args) = 0;
  virtual void Run(const RmsNormArgs& args) = 0;
  virtual void Run(const LayerNormArgs& args) = 0;
  virtual void Run(const HeadNormArgs& args) = 0;
  virtual void Run(const RopeAndStoreArgs& args) = 0;
  virtual void Run(const AttentionArgs& args) = 0;
  virtual void Run(const ActivateArgs& args) = 0;
  virtual void Run(const SoftCapArgs& args) = 0;
  virtual void Run(const AddArgs& args) = 0;
  virtual void Run(const CopyRowsArgs& args) = 0;
  virtual void Run(const CopyColumnsArgs& args) = 0;
  virtual void Run(const ScatterArgs& args) = 0;
  virtual void Run(const TakeTokensArgs& args) = 0;
  virtual void Run(const CopyBlockArgs& args) = 0;
  virtual void Run(const MatmulArgs& args) = 0;
  // An op and the product of its result as one, where the device has better than one after the
  // other; else it does nothing and returns false.
  virtual bool RunAsOne(const RmsNormArgs& /*norm*/, const MatmulArgs& /*product*/) {
    return false;
  }
  virtual bool RunAsOne(const LayerNormArgs& /*norm*/, const MatmulArgs& /*product*/) {
    return false;
  }
  virtual bool RunAsOne(const ActivateArgs& /*activate*/, const MatmulArgs& /*product*/) {
    return false;
  }

 protected:
  Stream() = default;
};

// Memory of a stream, zeroed, freed with the object. Allocated at load only (DESIGN I7).
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Stream& stream, int64_t bytes, Place place = Place::kDevice)
      : stream_(&stream),
        data_(bytes > 0 ? stream.Allocate(bytes, place) : nullptr),
        size_(bytes),
        place_(place) {}
  ~DeviceBuffer() { Release(); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    if (this == &other) return *this;
    Release();
    stream_ = std::exchange(other.stream_, nullptr);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    place_ = other.place_;
    return *this;
  }
  uint8_t* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  void Release() {
    if (data_ != nullptr) stream_->Free(data_, place_);
  }

  Stream* stream_ = nullptr;
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
  Place place_ = Place::kDevice;
};

// A vector of plain values in device memory, filled once at load.
template <typename T>
class DeviceVector {
 public:
  DeviceVector() = default;
  // `count` zeros, to be overwritten by whom it lends its memory.
  DeviceVector(Stream& stream, int64_t count)
      : buffer_(stream, count * static_cast<int64_t>(sizeof(T))) {}
  // `values` are copied before this returns.
  DeviceVector(Stream& stream, const std::vector<T>& values)
      : buffer_(stream, static_cast<int64_t>(values.size() * sizeof(T))) {
    if (values.empty()) return;
    stream.CopyToDevice(buffer_.data(), values.data(), buffer_.size());
    // An error stays with the stream.
    static_cast<void>(stream.Synchronize());
  }
  const T* data() const { return reinterpret_cast<const T*>(buffer_.data()); }
  uint8_t* memory() const { return buffer_.data(); }
  int64_t size() const { return buffer_.size() / static_cast<int64_t>(sizeof(T)); }
  bool empty() const { return buffer_.size() == 0; }
  int64_t bytes() const { return buffer_.size(); }

 private:
  DeviceBuffer buffer_;
};

}  // namespace pergola
