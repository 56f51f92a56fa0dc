// CUDA's names for what a Stream of OpenCudaStream is, for the other files of this folder.
#pragma once

#include <cuda_runtime.h>

#include <functional>

#include "absl/status/status.h"
#include "kernels/cuda/context.h"
#include "kernels/stream.h"

namespace pergola {

struct CudaHandle {
  cudaStream_t stream = nullptr;
  int device = 0;
};

// CHECKs that `stream` is one of OpenCudaStream's.
CudaHandle CudaHandleOf(Stream& stream);
// Enqueues what `launch` does as one of the stream's ops: nothing after an error; a refused launch
// becomes the stream's error, which names `op`.
void RunOnCuda(Stream& stream, const char* op,
               const std::function<void(const CudaContext&)>& launch);

// From now on `watch` is asked after every wait for the stream: its error becomes the stream's.
// nullptr: nobody is.
void WatchCudaStream(Stream& stream, std::function<absl::Status()> watch);

}  // namespace pergola
