// What a CUDA launcher needs to know of where it runs. Built once per rank; launchers borrow it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace pergola {

struct CudaContext {
  cudaStream_t stream = nullptr;  // all launches go here, in order
  int compute_capability = 0;     // 75, 80, 86, 89, 90, ...: 10 * major + minor
  int multiprocessors = 0;
  uint8_t* workspace = nullptr;  // device scratch, valid until the next op on the stream
  int64_t workspace_bytes = 0;
};

}  // namespace pergola
