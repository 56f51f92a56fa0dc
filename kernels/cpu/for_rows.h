// Deals the rows of a row-wise op to the stream's threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu_stream.h"
#include "kernels/thread_pool.h"

namespace pergola {

// Values a thread should have to itself before a fork pays.
inline constexpr int64_t kGrainValues = 8192;

template <typename Args>
void ForRows(CpuStream& stream, int64_t row_values, int64_t rows, const Args& args,
             void (*run)(const Args&, int64_t)) {
  const int64_t grain = std::max<int64_t>(1, kGrainValues / std::max<int64_t>(row_values, 1));
  stream.pool().ParallelFor(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) run(args, r);
  });
}

}  // namespace pergola
