// Stands in for CUDA in programs that are built without it.
#include "kernels/cuda/cuda_stream.h"
#include "kernels/cuda/peer_reducer.h"

namespace pergola {

absl::StatusOr<int> CudaDevices() {
  return absl::FailedPreconditionError("this program was built without CUDA");
}

int CudaDeviceCount() {
  return 0;
}

absl::StatusOr<std::unique_ptr<Stream>> OpenCudaStream(int /*index*/, CpuStream& /*host*/) {
  return absl::FailedPreconditionError(
      "this program was built without CUDA; build it with the CUDA toolkit, or use --device cpu");
}

absl::StatusOr<std::unique_ptr<PeerReducer>> PeerReducer::Open(Stream& /*stream*/,
                                                               const PeerOptions& /*options*/) {
  return absl::FailedPreconditionError("this program was built without CUDA");
}

int64_t PeerReducer::PlannedBytes(int /*ranks*/, int64_t /*most_bytes*/) {
  return 0;
}

}  // namespace pergola
