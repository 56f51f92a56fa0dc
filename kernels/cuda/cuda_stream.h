// One CUDA device as a Stream. What is behind these functions is chosen when a program is linked:
// CUDA, our emulator of it (tests), or no_cuda.cc.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cpu_stream.h"

namespace pergola {

// Devices that this program can use; 0 without CUDA, without a driver and without a GPU.
int CudaDeviceCount();

// Device `index` as a stream; `host` is borrowed. FAILED_PRECONDITION naming the device if there is
// none, or if it is older than compute capability 7.5 (Turing); INVALID_ARGUMENT for an index out
// of range.
absl::StatusOr<std::unique_ptr<Stream>> OpenCudaStream(int index, CpuStream& host);

}  // namespace pergola
