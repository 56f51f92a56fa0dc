// One small kernel for each function of kernels/cuda/device.cuh, for tests on the emulator and on
// GPUs.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"
#include "model/dtype.h"

namespace pergola {

// sums[block] and maxima[block] of x's `threads` values of that block, as the block's last thread
// has them; warp_sums[i] is what thread i gets.
void SumsCuda(const CudaContext& context, const float* x, int blocks, int threads, float* sums,
              float* maxima, float* warp_sums);

// y[0 .. values) = x, in tiles of 16 bytes per thread through kStages buffers of shared memory that
// are filled ahead; what lies behind x's first `values` (f32, a multiple of 4) reads as zero.
// `padded_values` is a whole number of tiles of 128 threads.
void StagedCopyCuda(const CudaContext& context, const float* x, int64_t values,
                    int64_t padded_values, float* y);

// r[lane * 4 + i] of LoadMatrix4 over x, four 8 x 8 matrices of 16 bits one after the other.
void LoadMatrixCuda(const CudaContext& context, const uint16_t* x, bool transposed, uint32_t* r);

// d[16][8] = c[16][8] + a[16][16] b[16][8], a and b bf16 or f16 by rows.
void MmaCuda(const CudaContext& context, DType dtype, const uint16_t* a, const uint16_t* b,
             const float* c, float* d);

// back[i] = ToFloat(FromFloat<T>(x[i])), bits[i] the 16 bits between.
void ConvertCuda(const CudaContext& context, DType dtype, const float* x, int64_t count,
                 uint16_t* bits, float* back);

// y = x in e4m3, read by LoadOnce16 and converted by PackE4M3; `count` is a multiple of 4.
void PackE4M3Cuda(const CudaContext& context, const float* x, int64_t count, uint8_t* y);

// y[i] = x[i] + addend.
void AddCuda(const CudaContext& context, const float* x, float addend, int64_t count, float* y);

// What lane i of a warp gets, 8 numbers per lane: shuffles by index, up, down and xor (of lane
// numbers, the last in groups of 8), ballot of odd lanes, any, all, count of lanes over 9.
void VotesCuda(const CudaContext& context, int* y);

}  // namespace pergola
