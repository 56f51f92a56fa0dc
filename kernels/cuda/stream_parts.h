// What the other files of this folder need of a Stream that OpenCudaStream made.
#pragma once

#include <functional>

#include "absl/status/status.h"
#include "kernels/cuda/context.h"
#include "kernels/stream.h"

namespace pergola {

// Both CHECK that `stream` is on a GPU.
const CudaContext& CudaContextOf(Stream& stream);
// From now on `watch` is asked after every wait for the stream: its error becomes the stream's.
// nullptr: nobody is.
void WatchCudaStream(Stream& stream, std::function<absl::Status()> watch);

}  // namespace pergola
