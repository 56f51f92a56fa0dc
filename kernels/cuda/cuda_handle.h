// CUDA's names for what a Stream of OpenCudaStream is, for the other files of this folder.
#pragma once

#include <cuda_runtime.h>

#include "kernels/stream.h"

namespace pergola {

struct CudaHandle {
  cudaStream_t stream = nullptr;
  int device = 0;
};

// CHECKs that `stream` is one of OpenCudaStream's.
CudaHandle CudaHandleOf(Stream& stream);

}  // namespace pergola
