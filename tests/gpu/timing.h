// Times of work on a CUDA stream.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "tests/kernels/cuda/device_array.h"

namespace pergola {

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Median of the times of `repeats` runs of `body`, seconds; never 0. The first two runs warm up.
template <typename Body>
double Seconds(const CudaContext& context, int repeats, const Body& body) {
  cudaEvent_t begin, end;
  PERGOLA_CUDA_CHECK(cudaEventCreate(&begin));
  PERGOLA_CUDA_CHECK(cudaEventCreate(&end));
  std::vector<double> seconds;
  for (int i = 0; i < repeats + 2; ++i) {
    PERGOLA_CUDA_CHECK(cudaEventRecord(begin, context.stream));
    body();
    PERGOLA_CUDA_CHECK(cudaEventRecord(end, context.stream));
    PERGOLA_CUDA_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    PERGOLA_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) seconds.push_back(static_cast<double>(ms) * 1e-3);
  }
  PERGOLA_CUDA_CHECK(cudaEventDestroy(begin));
  PERGOLA_CUDA_CHECK(cudaEventDestroy(end));
  return std::max(Median(std::move(seconds)), 1e-9);
}

}  // namespace pergola
