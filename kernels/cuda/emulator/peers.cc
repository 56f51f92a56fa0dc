// Devices that reach each other's memory, and memory shared between processes. An exported
// allocation gets the pages of an anonymous file in the place of its own, which another process
// opens through /proc: the same bytes for both, as on a GPU.
#include "kernels/cuda/emulator/peers.h"

#include <cuda_runtime.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/mutex.h"
#include "kernels/cuda/emulator/emulator.h"
#include "kernels/cuda/emulator/grid.h"
#include "kernels/cuda/emulator/stream.h"

namespace pergola::emulator {
namespace {

// Which devices may reach which, since cudaDeviceEnablePeerAccess: of the process, as contexts are.
struct Access {
  Mutex mutex;
  std::set<std::pair<int, int>> enabled GUARDED_BY(mutex);
  static Access& Instance() {
    static Access access;
    return access;
  }
};

bool DevicesExist(int device, int peer) {
  const int count = GetDeviceModel().count;
  return device >= 0 && device < count && peer >= 0 && peer < count;
}

// What a cudaIpcMemHandle_t holds.
struct Handle {
  uint64_t magic;
  int64_t bytes;
  int32_t process;
  int32_t file;
};
constexpr uint64_t kMagic = 0x70657267'6f6c6131;
static_assert(sizeof(Handle) <= sizeof(cudaIpcMemHandle_t));

}  // namespace

void CheckReach(const char* operation, const void* pointer) {
  const int own = CurrentDevice(), there = DeviceOfMemory(pointer);
  if (there == own || there == kPinnedMemory) return;
  if (there >= 0) {
    Access& access = Access::Instance();
    MutexLock lock(access.mutex);
    if (access.enabled.count({own, there}) > 0) return;
  }
  const std::string whose = there < 0 ? "no device's" : "device " + std::to_string(there) + "'s";
  KernelError(
      (std::string(operation) + " from device " + std::to_string(own) + " to " + whose + " memory")
          .c_str());
}

int ShareInPlace(void* pointer, int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  const int file = memfd_create("pergola-device-memory", MFD_CLOEXEC);
  if (file < 0) return -1;
  if (ftruncate(file, bytes) != 0 || pwrite(file, pointer, size, 0) != bytes) {
    close(file);
    return -1;
  }
  void* mapped = mmap(pointer, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
  PERGOLA_CHECK(mapped == pointer);
  return file;
}

void UnshareInPlace(void* pointer, int64_t bytes, int file) {
  void* mapped = mmap(pointer, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  PERGOLA_CHECK(mapped == pointer);
  close(file);
}

}  // namespace pergola::emulator

using pergola::emulator::Access;
using pergola::emulator::DevicesExist;
using pergola::emulator::GetDeviceModel;
using pergola::emulator::Handle;
using pergola::emulator::kMagic;
using pergola::emulator::RefuseDuringCapture;
using pergola::emulator::Report;

// A device does not count as its own peer.
cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
  if (can == nullptr || !DevicesExist(device, peer)) return Report(cudaErrorInvalidDevice);
  *can = GetDeviceModel().peers && device != peer ? 1 : 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  const int own = pergola::emulator::CurrentDevice();
  if (flags != 0) return Report(cudaErrorInvalidValue);
  int can = 0;
  const cudaError_t error = cudaDeviceCanAccessPeer(&can, own, peer);
  if (error != cudaSuccess) return error;
  if (own == peer) return Report(cudaErrorInvalidDevice);
  if (can == 0) return Report(cudaErrorPeerAccessUnsupported);
  Access& access = Access::Instance();
  pergola::MutexLock lock(access.mutex);
  return access.enabled.insert({own, peer}).second ? cudaSuccess
                                                   : Report(cudaErrorPeerAccessAlreadyEnabled);
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int device) {
  if (text == nullptr || !DevicesExist(device, device)) return Report(cudaErrorInvalidDevice);
  const int written =
      std::snprintf(text, static_cast<size_t>(length), "0000:%02x:00.0", device + 1);
  return written < length ? cudaSuccess : Report(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* text) {
  for (int i = 0; i < GetDeviceModel().count; ++i) {
    char own[16];
    if (cudaDeviceGetPCIBusId(own, sizeof(own), i) != cudaSuccess) break;
    if (std::strcmp(own, text) != 0) continue;
    *device = i;
    return cudaSuccess;
  }
  return Report(cudaErrorInvalidDevice);
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* pointer) {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused != cudaSuccess) return refused;
  const pergola::emulator::SharedMemoryFile shared = pergola::emulator::ShareMemory(pointer);
  if (shared.file < 0) return Report(cudaErrorInvalidValue);
  const Handle own = {kMagic, shared.bytes, getpid(), shared.file};
  *handle = {};
  std::memcpy(handle, &own, sizeof(own));
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** pointer, cudaIpcMemHandle_t handle, unsigned flags) {
  const cudaError_t refused = RefuseDuringCapture();
  if (refused != cudaSuccess) return refused;
  Handle other;
  std::memcpy(&other, &handle, sizeof(other));
  if (other.magic != kMagic || flags != cudaIpcMemLazyEnablePeerAccess) {
    return Report(cudaErrorInvalidValue);
  }
  // A process opens what others made, not its own.
  if (other.process == getpid()) return Report(cudaErrorDeviceUninitialized);
  if (!GetDeviceModel().peers) return Report(cudaErrorPeerAccessUnsupported);
  const std::string path =
      "/proc/" + std::to_string(other.process) + "/fd/" + std::to_string(other.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return Report(cudaErrorMapBufferObjectFailed);
  void* mapped =
      mmap(nullptr, static_cast<size_t>(other.bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) return Report(cudaErrorMapBufferObjectFailed);
  pergola::emulator::AddImportedMemory(mapped, other.bytes);
  *pointer = mapped;
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void* pointer) {
  const int64_t bytes = pergola::emulator::RemoveImportedMemory(pointer);
  if (bytes == 0) return Report(cudaErrorInvalidValue);
  munmap(pointer, static_cast<size_t>(bytes));
  return cudaSuccess;
}
