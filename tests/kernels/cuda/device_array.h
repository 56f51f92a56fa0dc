// Device memory for tests of CUDA launchers: of a GPU, or of the emulator, by what the test program
// is built with.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/context.h"

namespace pergola {

#define PERGOLA_CUDA_CHECK(call)                                                  \
  do {                                                                            \
    const cudaError_t cuda_error = (call);                                        \
    PERGOLA_CHECK_MSG(cuda_error == cudaSuccess, cudaGetErrorString(cuda_error)); \
  } while (false)

// A copy of `values` on the device, or `count` values that nobody has written.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t count) : count_(count) {
    PERGOLA_CUDA_CHECK(cudaMalloc(&data_, Bytes()));
  }
  explicit DeviceArray(const std::vector<T>& values)
      : DeviceArray(static_cast<int64_t>(values.size())) {
    PERGOLA_CUDA_CHECK(cudaMemcpy(data_, values.data(), Bytes(), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }
  T* data() const { return data_; }
  int64_t size() const { return count_; }
  // Waits for the device.
  std::vector<T> Read() const {
    std::vector<T> values(static_cast<size_t>(count_));
    PERGOLA_CUDA_CHECK(cudaDeviceSynchronize());
    PERGOLA_CUDA_CHECK(cudaMemcpy(values.data(), data_, Bytes(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t Bytes() const { return static_cast<size_t>(count_) * sizeof(T); }
  int64_t count_;
  T* data_ = nullptr;
};

// Of the host, where the device copies from and to it.
class PinnedBytes {
 public:
  explicit PinnedBytes(int64_t count) {
    PERGOLA_CUDA_CHECK(cudaMallocHost(&data_, static_cast<size_t>(count)));
  }
  PinnedBytes(const PinnedBytes&) = delete;
  PinnedBytes& operator=(const PinnedBytes&) = delete;
  ~PinnedBytes() { cudaFreeHost(data_); }
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }

 private:
  void* data_ = nullptr;
};

// Why CUDA tests cannot run here, or nullptr.
inline const char* WhyNoCuda() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return devices == 0 ? "there is no CUDA device" : nullptr;
}

// A stream of its own, and a workspace.
class TestCudaContext {
 public:
  // `compute_capability`: the device's own if 0.
  explicit TestCudaContext(int64_t workspace_bytes = 1 << 20, int compute_capability = 0)
      : workspace_(workspace_bytes) {
    cudaDeviceProp properties;
    PERGOLA_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
    context_.compute_capability =
        compute_capability != 0 ? compute_capability : 10 * properties.major + properties.minor;
    context_.multiprocessors = properties.multiProcessorCount;
    context_.workspace = workspace_.data();
    context_.workspace_bytes = workspace_bytes;
    PERGOLA_CUDA_CHECK(cudaStreamCreateWithFlags(&context_.stream, cudaStreamNonBlocking));
  }
  TestCudaContext(const TestCudaContext&) = delete;
  TestCudaContext& operator=(const TestCudaContext&) = delete;
  ~TestCudaContext() { cudaStreamDestroy(context_.stream); }
  operator const CudaContext&() const { return context_; }
  cudaStream_t stream() const { return context_.stream; }

 private:
  DeviceArray<uint8_t> workspace_;
  CudaContext context_;
};

}  // namespace pergola
