// Memory that several devices and processes see: what peers.cc and the registry of memory.cc tell
// each other. Private to the emulator.
#pragma once

#include <cstdint>

namespace pergola::emulator {

// Ends the process if the kernel's device cannot reach the memory at `pointer`: another device's
// without cudaDeviceEnablePeerAccess.
void CheckReach(const char* operation, const void* pointer);

// Of the calling thread.
int CurrentDevice();
void SetCurrentDevice(int device);
// The device whose memory `pointer` points into, or one of these.
inline constexpr int kPinnedMemory = -1;
inline constexpr int kPageableMemory = -2;
int DeviceOfMemory(const void* pointer);

struct SharedMemoryFile {
  int file = -1;  // -1: nothing that can be shared
  int64_t bytes = 0;
};
// Gives the allocation that begins at `pointer` the pages of a file, at the same addresses.
SharedMemoryFile ShareMemory(void* pointer);
// Maps `bytes` at `pointer` (whole pages, mapped privately) to a new file with the same contents;
// -1 if the system has none to give. UnshareInPlace closes it and leaves private pages.
int ShareInPlace(void* pointer, int64_t bytes);
void UnshareInPlace(void* pointer, int64_t bytes, int file);
// Memory of another process; Remove returns its size, 0 if it is none.
void AddImportedMemory(void* pointer, int64_t bytes);
int64_t RemoveImportedMemory(void* pointer);

}  // namespace pergola::emulator
