// Stands in for CUDA in programs that are built without it.
#include "kernels/cuda/cuda_stream.h"

namespace pergola {

int CudaDeviceCount() {
  return 0;
}

absl::StatusOr<std::unique_ptr<Stream>> OpenCudaStream(int /*index*/, CpuStream& /*host*/) {
  return absl::FailedPreconditionError(
      "this program was built without CUDA; build it with the CUDA toolkit, or use --device cpu");
}

}  // namespace pergola
