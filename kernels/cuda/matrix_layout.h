// How a weight matrix [rows = outputs, columns = inputs] lies in GPU memory, and its packing on the
// host. Plain C++: the loader and the memory plan use it without CUDA. The kernels' side is
// kernels/cuda/weight_format.cuh.
//
//   f32, bf16, f16  row by row, a row padded with zeros to 16 bytes: as cuBLASLt takes it
//   int8, fp8       rows of int8 or e4m3 likewise, after all of them a f32 scale per row
//   block formats   row by row; a row is whole units of 128 values (K-quants: 256), as sections of
//                   all units: low bits, high bits, small scales, f16 numbers. A row takes the
//                   bytes it has in the file, rounded up to units and 16 bytes.
//
// Low and high bits are laid so that one 16-byte load gives a lane what tensor core fragments want
// of it. A unit is chunks of 32 values. In a warp's product, lane t of the four that share an
// output holds 8 values of each chunk (an octet): where scales are of 32 values those at 8 t .. 8 t
// + 7; where they are of 16, those at 4 t .. 4 t + 3 and 16 + 4 t .. 16 + 4 t + 3, so that each
// half is one step of 16 of the tensor core and one scale. With b bits per value an octet takes b
// bytes; the octets of lane t in all chunks of a unit lie together, in pieces of 16 bytes if they
// are more: [piece][t][16 or fewer bytes]. Inside an octet, values 2 i and 2 i + 1 end up in the
// two halves of a word by one shift and mask: of 4 bits value 2 i is at bit 4 i, 2 i + 1 at 16 + 4
// i; of 2 bits at 2 i and 8 + 2 i; of 1 bit at i and 4 + i; of 8 bits in order.
#pragma once

#include <cstdint>

#include "model/cuda_packed_size.h"
#include "model/dtype.h"

namespace pergola {

// A borrowed matrix in device memory.
struct CudaMatrix {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int lead = 0;  // values of a row's first block before the matrix begins (PackedMatrix::Allocate)
  const uint8_t* data = nullptr;  // 16-byte aligned
};

// Packs `row_count` rows as they are in the file (PackedMatrix::PackRows says how) as rows
// first_row.. of `matrix` into `image`, CudaMatrixBytes of zeros that go to the device as they are.
// matrix.data is not looked at. Different rows may be packed by different threads.
void PackCudaRows(const CudaMatrix& matrix, int64_t first_row, int64_t row_count,
                  const void* source, int64_t source_row_bytes, uint8_t* image);

// Decodes one row of a matrix whose data is in host memory to f32 [columns]: tests.
void UnpackCudaRow(const CudaMatrix& matrix, int64_t row, float* out);

}  // namespace pergola
