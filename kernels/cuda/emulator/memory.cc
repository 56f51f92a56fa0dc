// Devices, memory and errors of the emulated runtime API. Device memory is host memory of which a
// registry knows beginning and size, so that copies out of bounds and frees of what was never
// allocated are refused as CUDA refuses them.
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "base/mutex.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/grid.h"
#include "kernels/cuda/emulator/peers.h"
#include "kernels/cuda/emulator/stream.h"

namespace pergola::emulator {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

// How an export must begin and end: whole pages, which can be mapped anew in place. CUDA shares the
// whole of such a granule with whoever opens a part of it; here a part cannot be exported.
constexpr size_t kShareGranule = size_t{2} << 20;
constexpr size_t kPageBytes = 4096;

constexpr int kRuntimeVersion = 13000;  // of CUDA

// How programs whose main is the product's are told of their devices (emulator.h, DeviceModel).
DeviceModel ModelFromEnvironment() {
  DeviceModel model;
  if (const char* count = std::getenv("PERGOLA_EMULATED_GPUS"); count != nullptr) {
    model.count = std::atoi(count);
  }
  if (const char* bytes = std::getenv("PERGOLA_EMULATED_GPU_BYTES"); bytes != nullptr) {
    model.memory_bytes = std::atoll(bytes);
  }
  if (const char* version = std::getenv("PERGOLA_EMULATED_DRIVER"); version != nullptr) {
    model.driver_version = std::atoi(version);
  }
  return model;
}

class Registry {
 public:
  static Registry& Instance() {
    static Registry registry;
    return registry;
  }
  void SetModel(const DeviceModel& model) {
    MutexLock lock(mutex_);
    model_ = model;
  }
  DeviceModel model() {
    MutexLock lock(mutex_);
    return model_;
  }
  int64_t allocated(int device) {
    MutexLock lock(mutex_);
    return allocated_[device];
  }
  int64_t allocation_count() {
    MutexLock lock(mutex_);
    return allocation_count_;
  }
  cudaError_t TakeDriverMemory(int64_t bytes) {
    MutexLock lock(mutex_);
    int64_t& allocated = allocated_[current_device];
    if (bytes > model_.memory_bytes - allocated) return cudaErrorMemoryAllocation;
    allocated += bytes;
    return cudaSuccess;
  }
  cudaError_t Allocate(void** pointer, size_t bytes, bool on_device) {
    if (pointer == nullptr) return cudaErrorInvalidValue;
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    MutexLock lock(mutex_);
    const auto size = static_cast<int64_t>(bytes);
    if (on_device && size > model_.memory_bytes - allocated_[current_device])
      return cudaErrorMemoryAllocation;
    const size_t alignment = bytes % kShareGranule == 0 ? kPageBytes : kAlignment;
    void* memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (memory == nullptr) return cudaErrorMemoryAllocation;
    std::memset(memory, 0xff, bytes);
    blocks_[reinterpret_cast<uintptr_t>(memory)] = {size, on_device, current_device, -1, false};
    ++allocation_count_;
    if (on_device) allocated_[current_device] += size;
    *pointer = memory;
    return cudaSuccess;
  }
  cudaError_t Free(void* pointer, bool on_device) {
    if (pointer == nullptr) return cudaSuccess;
    MutexLock lock(mutex_);
    const auto found = blocks_.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == blocks_.end() || found->second.on_device != on_device || found->second.imported) {
      return cudaErrorInvalidValue;
    }
    if (on_device) allocated_[found->second.device] -= found->second.bytes;
    const Block block = found->second;
    blocks_.erase(found);
    // The heap must not go on with pages that another process sees.
    if (block.shared_file >= 0) UnshareInPlace(pointer, block.bytes, block.shared_file);
    std::free(pointer);
    return cudaSuccess;
  }
  int DeviceOf(const void* pointer) {
    MutexLock lock(mutex_);
    const auto at = reinterpret_cast<uintptr_t>(pointer);
    auto found = blocks_.upper_bound(at);
    if (found == blocks_.begin()) return kPageableMemory;
    --found;
    if (static_cast<int64_t>(at - found->first) >= found->second.bytes) return kPageableMemory;
    return found->second.on_device ? found->second.device : kPinnedMemory;
  }
  SharedMemoryFile Share(void* pointer) {
    MutexLock lock(mutex_);
    const auto found = blocks_.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == blocks_.end() || !found->second.on_device || found->second.imported ||
        static_cast<size_t>(found->second.bytes) % kShareGranule != 0) {
      return {};
    }
    Block& block = found->second;
    if (block.shared_file < 0) block.shared_file = ShareInPlace(pointer, block.bytes);
    return {block.shared_file, block.bytes};
  }
  void AddImported(void* pointer, int64_t bytes) {
    MutexLock lock(mutex_);
    blocks_[reinterpret_cast<uintptr_t>(pointer)] = {bytes, true, current_device, -1, true};
  }
  int64_t RemoveImported(void* pointer) {
    MutexLock lock(mutex_);
    const auto found = blocks_.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == blocks_.end() || !found->second.imported) return 0;
    const int64_t bytes = found->second.bytes;
    blocks_.erase(found);
    return bytes;
  }
  // What all of [pointer, pointer + bytes) is: pageable if CUDA knows nothing of it.
  enum class Kind : uint8_t { kPageable, kPinned, kDevice };
  Kind KindOf(const void* pointer, size_t bytes) {
    MutexLock lock(mutex_);
    const auto at = reinterpret_cast<uintptr_t>(pointer);
    auto found = blocks_.upper_bound(at);
    if (found == blocks_.begin()) return Kind::kPageable;
    --found;
    const auto offset = static_cast<int64_t>(at - found->first);
    if (offset + static_cast<int64_t>(bytes) > found->second.bytes) return Kind::kPageable;
    return found->second.on_device ? Kind::kDevice : Kind::kPinned;
  }
  bool IsDeviceMemory(const void* pointer, size_t bytes) {
    return KindOf(pointer, bytes) == Kind::kDevice;
  }
  bool IsPageable(const void* pointer, size_t bytes) {
    return KindOf(pointer, bytes) == Kind::kPageable;
  }

 private:
  static constexpr size_t kAlignment = 256;  // cudaMalloc's
  struct Block {
    int64_t bytes;
    bool on_device;
    int device;       // that was current when it was allocated or opened
    int shared_file;  // whose pages it has, once exported; -1
    bool imported;    // from another process
  };
  Mutex mutex_;
  DeviceModel model_ GUARDED_BY(mutex_) = ModelFromEnvironment();
  std::map<uintptr_t, Block> blocks_ GUARDED_BY(mutex_);
  std::map<int, int64_t> allocated_ GUARDED_BY(mutex_);  // of each device
  int64_t allocation_count_ GUARDED_BY(mutex_) = 0;
};

Registry& TheRegistry() {
  return Registry::Instance();
}

cudaError_t CheckCopy(void* to, size_t to_bytes, const void* from, size_t from_bytes,
                      cudaMemcpyKind kind) {
  const cudaError_t failure = TakeCudaFailure(FailingCall::kCopy);
  if (failure != cudaSuccess) return failure;
  if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) {
    return cudaErrorInvalidMemcpyDirection;
  }
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (to_device && !TheRegistry().IsDeviceMemory(to, to_bytes)) return cudaErrorInvalidValue;
  if (from_device && !TheRegistry().IsDeviceMemory(from, from_bytes)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

}  // namespace

void SetDeviceModel(const DeviceModel& model) {
  TheRegistry().SetModel(model);
}

DeviceModel GetDeviceModel() {
  return TheRegistry().model();
}

int CurrentDevice() {
  return current_device;
}

void SetCurrentDevice(int device) {
  current_device = device;
}

int DeviceOfMemory(const void* pointer) {
  return TheRegistry().DeviceOf(pointer);
}

SharedMemoryFile ShareMemory(void* pointer) {
  return TheRegistry().Share(pointer);
}

void AddImportedMemory(void* pointer, int64_t bytes) {
  TheRegistry().AddImported(pointer, bytes);
}

int64_t RemoveImportedMemory(void* pointer) {
  return TheRegistry().RemoveImported(pointer);
}

bool IsDeviceMemory(const void* pointer, size_t bytes) {
  return TheRegistry().IsDeviceMemory(pointer, bytes);
}

int64_t AllocationCount() {
  return TheRegistry().allocation_count();
}

cudaError_t TakeDriverMemory(int64_t bytes) {
  return TheRegistry().TakeDriverMemory(bytes);
}

cudaError_t Report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace pergola::emulator

using pergola::emulator::Enqueue;
using pergola::emulator::FailingCall;
using pergola::emulator::GetDeviceModel;
using pergola::emulator::kRuntimeVersion;
using pergola::emulator::RefuseDuringCapture;
using pergola::emulator::Report;
using pergola::emulator::TakeCudaFailure;
using pergola::emulator::TheRegistry;

cudaError_t cudaGetLastError() {
  const cudaError_t error = pergola::emulator::last_error;
  pergola::emulator::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  return pergola::emulator::last_error;
}

cudaError_t cudaGetDeviceCount(int* count) {
  if (GetDeviceModel().driver_version < kRuntimeVersion) {
    *count = 0;
    return Report(cudaErrorInsufficientDriver);
  }
  *count = GetDeviceModel().count;
  return *count > 0 ? cudaSuccess : Report(cudaErrorNoDevice);
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= GetDeviceModel().count) return Report(cudaErrorInvalidDevice);
  pergola::emulator::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = pergola::emulator::current_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  const pergola::emulator::DeviceModel model = GetDeviceModel();
  if (device < 0 || device >= model.count) return Report(cudaErrorInvalidDevice);
  cudaDeviceProp p = {};
  std::strncpy(p.name, "Pergola CUDA emulator", sizeof(p.name) - 1);
  p.totalGlobalMem = static_cast<size_t>(model.memory_bytes);
  p.sharedMemPerBlock = 48 << 10;
  p.sharedMemPerBlockOptin = static_cast<size_t>(pergola::emulator::kMaxDynamicSharedBytes);
  p.sharedMemPerMultiprocessor = 228 << 10;
  p.reservedSharedMemPerBlock = 1 << 10;
  p.regsPerBlock = p.regsPerMultiprocessor = 1 << 16;
  p.warpSize = pergola::emulator::kLanes;
  p.maxThreadsPerBlock = pergola::emulator::kMaxThreads;
  p.maxThreadsPerMultiProcessor = 2048;
  p.maxBlocksPerMultiProcessor = 32;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.major = model.major;
  p.minor = model.minor;
  p.multiProcessorCount = model.multiprocessors;
  p.memoryBusWidth = 64;
  p.l2CacheSize = 1 << 20;
  p.concurrentKernels = 1;
  p.pciBusID = device + 1;
  *properties = p;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  cudaDeviceProp p;
  const cudaError_t error = cudaGetDeviceProperties(&p, device);
  if (error != cudaSuccess) return error;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = p.maxThreadsPerBlock;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(p.sharedMemPerBlock);
      break;
    case cudaDevAttrWarpSize:
      *value = p.warpSize;
      break;
    case cudaDevAttrClockRate:
    case cudaDevAttrMemoryClockRate:
      *value = 1000000;  // kHz
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = p.multiProcessorCount;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = p.memoryBusWidth;
      break;
    case cudaDevAttrL2CacheSize:
      *value = p.l2CacheSize;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = p.maxThreadsPerMultiProcessor;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = p.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = p.minor;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(p.sharedMemPerMultiprocessor);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(p.sharedMemPerBlockOptin);
      break;
    default:
      return Report(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = GetDeviceModel().driver_version;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = kRuntimeVersion;
  return cudaSuccess;
}

cudaError_t cudaDeviceReset() {
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const int64_t total = GetDeviceModel().memory_bytes;
  *total_bytes = static_cast<size_t>(total);
  *free_bytes =
      static_cast<size_t>(total - TheRegistry().allocated(pergola::emulator::current_device));
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused != cudaSuccess) return refused;
  const cudaError_t failure = TakeCudaFailure(FailingCall::kMalloc);
  if (failure != cudaSuccess) return failure;
  return Report(TheRegistry().Allocate(pointer, bytes, true));
}

cudaError_t cudaFree(void* pointer) {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused != cudaSuccess) return refused;
  pergola::emulator::RunAllDeferred();  // as CUDA waits for the device
  return Report(TheRegistry().Free(pointer, true));
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault);
}

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned /*flags*/) {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused != cudaSuccess) return refused;
  const cudaError_t failure = TakeCudaFailure(FailingCall::kMallocHost);
  if (failure != cudaSuccess) return failure;
  return Report(TheRegistry().Allocate(pointer, bytes, false));
}

cudaError_t cudaFreeHost(void* pointer) {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused != cudaSuccess) return refused;
  return Report(TheRegistry().Free(pointer, false));
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused != cudaSuccess) return refused;
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  const cudaError_t error = pergola::emulator::CheckCopy(to, bytes, from, bytes, kind);
  if (error != cudaSuccess) return Report(error);
  if (pergola::emulator::Delays(stream) && TheRegistry().IsPageable(from, bytes)) {
    // CUDA has read pageable memory when it returns.
    const auto* begin = static_cast<const char*>(from);
    return Enqueue(stream, [to, own = std::vector<char>(begin, begin + bytes)] {
      std::memcpy(to, own.data(), own.size());
    });
  }
  const cudaError_t put = Enqueue(stream, [=] { std::memmove(to, from, bytes); });
  // And it has written it.
  if (TheRegistry().IsPageable(to, bytes)) pergola::emulator::RunDeferred(stream);
  return put;
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  if (width > to_pitch || width > from_pitch) return Report(cudaErrorInvalidValue);
  if (width == 0 || height == 0) return cudaSuccess;
  const cudaError_t error = pergola::emulator::CheckCopy(to, to_pitch * (height - 1) + width, from,
                                                         from_pitch * (height - 1) + width, kind);
  if (error != cudaSuccess) return Report(error);
  const cudaError_t put = Enqueue(stream, [=] {
    for (size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch,
                   static_cast<const char*>(from) + row * from_pitch, width);
    }
  });
  if (TheRegistry().IsPageable(to, width) || TheRegistry().IsPageable(from, width)) {
    pergola::emulator::RunDeferred(stream);
  }
  return put;
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused != cudaSuccess) return refused;
  return cudaMemsetAsync(to, value, bytes, nullptr);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!TheRegistry().IsDeviceMemory(to, bytes)) return Report(cudaErrorInvalidValue);
  return Enqueue(stream, [=] { std::memset(to, value, bytes); });
}

cudaError_t cudaFuncSetAttribute(const void* /*function*/, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize &&
      (value < 0 || value > pergola::emulator::kMaxDynamicSharedBytes)) {
    return Report(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}
