// What a CUDA launcher needs to know of where it runs. Built once per rank; launchers borrow it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pergola {

class DenseProduct;

struct CudaContext {
  cudaStream_t stream = nullptr;  // all launches go here, in order
  int compute_capability = 0;     // 75, 80, 86, 89, 90, ...: 10 * major + minor
  int multiprocessors = 0;
  uint8_t* workspace = nullptr;  // device scratch, valid until the next op on the stream
  int64_t workspace_bytes = 0;
  // Whether what was last enqueued is a kernel by Launch (device.cuh), with which the next one may
  // overlap. nullptr: kernels never overlap.
  bool* after_kernel = nullptr;
  DenseProduct* dense = nullptr;  // kernels/cuda/dense_product.h; MatmulCuda needs it
};

// Called by whoever enqueues something else than a kernel by Launch, before or after it.
inline void EndOverlap(const CudaContext& context) {
  if (context.after_kernel != nullptr) *context.after_kernel = false;
}

}  // namespace pergola
