// What a CUDA launcher needs to know of where it runs. Built once per rank; launchers borrow it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

#include "base/check.h"

namespace pergola {

class DenseProduct;

// The first launch, of a kernel or a library's product, that was refused.
struct LaunchRefusal {
  bool refused = false;
  std::string text;
};

struct CudaContext {
  cudaStream_t stream = nullptr;  // all launches go here, in order
  int compute_capability = 0;     // 75, 80, 86, 89, 90, ...: 10 * major + minor
  int multiprocessors = 0;
  uint8_t* workspace = nullptr;  // device scratch, valid until the next op on the stream
  int64_t workspace_bytes = 0;
  // Whether what was last enqueued is a kernel by Launch (device.cuh), with which the next one may
  // overlap. nullptr: kernels never overlap.
  bool* after_kernel = nullptr;
  LaunchRefusal* refusal = nullptr;  // where it is kept; nullptr: it ends the process
  DenseProduct* dense = nullptr;     // kernels/cuda/dense_product.h; MatmulCuda needs it
};

// "out of memory (cudaErrorMemoryAllocation)".
inline std::string CudaWords(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

// A launch was refused for what `text` says.
inline void KeepRefusal(const CudaContext& context, const std::string& text) {
  PERGOLA_CHECK_MSG(context.refusal != nullptr, text);
  if (!context.refusal->refused) *context.refusal = {true, text};
}

// Called by whoever enqueues something else than a kernel by Launch, before or after it.
inline void EndOverlap(const CudaContext& context) {
  if (context.after_kernel != nullptr) *context.after_kernel = false;
}

}  // namespace pergola
