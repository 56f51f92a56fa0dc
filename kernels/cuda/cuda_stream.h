// One CUDA device as a Stream. What is behind these functions is chosen when a program is linked:
// CUDA, our emulator of it (tests), or no_cuda.cc.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cpu_stream.h"

namespace pergola {

// Devices that this program can use, at least one. FAILED_PRECONDITION saying what lacks: CUDA in
// the program, a driver, a newer driver (with both versions), a GPU.
absl::StatusOr<int> CudaDevices();
// The same; 0 where something lacks.
int CudaDeviceCount();

// Device `index` as a stream; `host` is borrowed. CudaDevices' errors; FAILED_PRECONDITION naming
// the device if it is older than compute capability 7.5 (Turing); INVALID_ARGUMENT for an index out
// of range.
absl::StatusOr<std::unique_ptr<Stream>> OpenCudaStream(int index, CpuStream& host);

}  // namespace pergola
