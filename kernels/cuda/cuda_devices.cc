// What this machine has for CUDA.
#include <cuda_runtime.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/cuda_stream.h"

namespace pergola {
namespace {

// 12040 is 12.4.
std::string VersionText(int version) {
  return absl::StrCat(version / 1000, ".", version % 1000 / 10);
}

}  // namespace

absl::StatusOr<int> CudaDevices() {
  int count = 0, driver = 0, needed = 0;
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted == cudaSuccess && count > 0) return count;
  const char* none = "this machine has no CUDA device: ";
  if (counted != cudaErrorInsufficientDriver) {
    return absl::FailedPreconditionError(absl::StrCat(
        none, counted == cudaSuccess ? "the driver lists none" : cudaGetErrorString(counted)));
  }
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&needed));
  if (driver == 0) return absl::FailedPreconditionError(absl::StrCat(none, "it has no driver"));
  return absl::FailedPreconditionError(
      absl::StrCat("the NVIDIA driver supports CUDA ", VersionText(driver), "; this program needs ",
                   VersionText(needed), ": install a newer driver"));
}

int CudaDeviceCount() {
  return CudaDevices().value_or(0);
}

}  // namespace pergola
