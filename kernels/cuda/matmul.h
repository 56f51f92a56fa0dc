// y = x W^T + bias on a GPU: the contract of kernels/matmul.h for activations of 16 or 32 bits and
// weights in kernels/cuda/matrix_layout.h's layout.
//
//   y[r, o] = bias[o] + sum over k of x[r, k] * w[o, k], or GELU of that
//
// Which way is taken depends on shapes and dtypes alone, and each way adds in a fixed order: the
// same call gives the same bits. Unlike on the CPU a row's bits may change with the number of rows.
//
// Error against the reference (double accumulation over the same values), before y is rounded to
// its dtype: at most (17/16 K + 16) 2^-23 sum |x w| where |w| is |s q| + |m| for formats with a
// minimum: a tensor core cuts the 16 products of a step and the sum so far, 17 values, at one place
// (Fasi et al., Numerical behavior of NVIDIA tensor cores, PeerJ Comput. Sci. 7:e330, 2021). Where
// weights are decoded to 16 bits (many rows of x, or dense weights of another dtype than x's) each
// is rounded once more: + u_A sum |x w|, u_A = 2^-8 (bf16), 2^-11 (f16). A bias beside a y of 16
// bits may be rounded to that dtype. GELU takes the sum before it is rounded to y's dtype: its
// error is that of ActivateArgs (kernels/decoder_ops.h) and 1.13 times, the steepest that GELU is,
// the sum's; where y has 16 bits and the library applies GELU, another 2^-11 |sum|: its tanh may be
// the hardware's (NVIDIA, PTX ISA, tanh.approx.f32).
//
// Tokens in eight bits, against the reference over the values that the tokens are rounded to:
//   int8  (2 |O| + 13) 2^-23 sum |s q t p| (outliers: |x t p|) in kernels/matmul.h's terms
//   fp8   (33/32 K + 16) 2^-13 sum |s q t p|: Hopper's tensor cores add 32 products of e4m3 and the
//         sum so far, 33 values, cut at 13 places below the largest (DeepSeek-V3 technical report,
//         arXiv:2412.19437, section 3.5.2); the library adds such sums in f32 now and then, so that
//         in practice the error does not grow with K. Where sums are f32's, 2^-23 for 2^-13.
// Against x and w before they were rounded each product of int8 is off as kernels/matmul.h says, of
// fp8 by at most 2^-3 (1 + 2^-4) |x w| + 2^-10 (s |w| + t |x|) (1 + 2^-3) + 2^-20 s t:
// kernels/fp8.h for both factors.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/cuda/tokens.h"
#include "kernels/tensor.h"

namespace pergola {

// What a matrix of eight bits multiplies.
enum class CudaTokens {
  kAsTheyAre,  // W8A16
  // W8A8, where MultipliesEightBitTokens; else as they are. Of int8 x in int8 but for its outliers,
  // which are exact (kernels/int8.h); of fp8 x in e4m3 (kernels/fp8.h).
  kEightBits,
};

struct CudaMatmulArgs {
  Tensor x;  // [rows, w.columns] f32, bf16 or f16, dense
  CudaMatrix w;
  const float* bias = nullptr;  // [w.rows] f32 or nullptr
  bool accumulate = false;      // y += ...
  Tensor y;                     // [rows, w.rows], x's dtype or f32; may not alias x
  int64_t y_stride = 0;         // values from row to row of y, at least w.rows; 0: w.rows
  // y = GELU of all that, in its tanh form (Activation::kGeluTanh); not with `accumulate`.
  bool gelu = false;
  CudaTokens tokens = CudaTokens::kAsTheyAre;
  // x's tokens lie at TokensOfProduct already, and of x itself the outliers of int8 alone: for what
  // MultipliesEightBitTokens.
  bool tokens_made = false;
};
void MatmulCuda(const CudaContext& context, const CudaMatmulArgs& args);

// Whether the library has the product of args.x in eight bits: x of 16 bits (of fp8: as y), outputs
// a multiple of 4 (fp8: of 16, y's rows of 16 bytes, and a device with e4m3 and a scale per row).
bool MultipliesEightBitTokens(const CudaContext& context, const CudaMatmulArgs& args);
// Where a product that does so has x's tokens: in the workspace.
TokensView TokensOfProduct(const CudaContext& context, const CudaMatmulArgs& args);

// The most rows that stream packed weights through the tensor cores instead of the library.
inline constexpr int64_t kMostStreamedRows = 128;

// Workspace with which MatmulCuda does its best for `rows` of x in `activations`; it needs as much
// for products of dense weights by many rows and for tokens in eight bits, else it makes do with
// less.
int64_t MatmulCudaWorkspaceBytes(const CudaMatrix& w, DType activations, int64_t rows,
                                 CudaTokens tokens);

// EmbeddingArgs of kernels/decoder_ops.h, of a table on the device.
struct CudaEmbeddingArgs {
  CudaMatrix table;  // [rows_local, hidden]
  int64_t first_row = 0;
  Tensor ids;  // [rows] i32
  float scale = 1;
  bool accumulate = false;
  Tensor y;  // [rows, hidden] f32
};
void EmbeddingCuda(const CudaContext& context, const CudaEmbeddingArgs& args);

}  // namespace pergola
