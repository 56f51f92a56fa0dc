// The SIMD versions of Matmul for the stream's target. Shapes have been checked, rows and outputs
// are not 0.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/matmul.h"
#include "kernels/thread_pool.h"
#include "model/packed_size.h"

namespace pergola {

void MatmulCpu(CpuStream& stream, const MatmulArgs& args);
// int8 weights; the same bits whether or not instructions for it (VPDPBUSD) may be used.
void MatmulInt8Cpu(CpuStream& stream, const MatmulArgs& args, bool allow_vnni = true);

// The rows and panels that belong to one thread.
struct MatmulShare {
  int64_t row_begin = 0, row_end = 0;
  int64_t panel_begin = 0, panel_end = 0;
};

// Calls run(share, thread) once for each share. Threads share out the panels; where those are
// fewer, rows too.
template <typename Run>
void RunShares(ThreadPool& pool, const MatmulArgs& args, const Run& run) {
  const int64_t rows = args.x.dim(0);
  const int64_t panels = PanelCount(args.w->rows());
  const int64_t panel_parts = std::min<int64_t>(pool.threads(), panels);
  const int64_t row_parts = std::min<int64_t>(pool.threads() / panel_parts, rows);
  pool.Run([&](int thread) {
    if (thread >= panel_parts * row_parts) return;
    const int64_t p = thread % panel_parts;
    const int64_t r = thread / panel_parts;
    MatmulShare share;
    share.row_begin = rows * r / row_parts;
    share.row_end = rows * (r + 1) / row_parts;
    share.panel_begin = panels * p / panel_parts;
    share.panel_end = panels * (p + 1) / panel_parts;
    run(share, thread);
  });
}

}  // namespace pergola
