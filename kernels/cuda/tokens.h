// Tokens in eight bits, for the products of matmul_tokens.cu: made of activations that lie in
// memory (quantize_tokens.cu), or where those are computed (row_tokens.cu).
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/decoder_ops.h"
#include "kernels/tensor.h"

namespace pergola {

// Tokens that share a list of columns.
inline constexpr int64_t kOutlierRows = 64;

// x [rows, columns] in int8 or e4m3; all in device memory.
struct TokensView {
  DType dtype = DType::kInt8;  // or fp8
  uint8_t* q = nullptr;        // [rows, stride], zeros from `columns` on
  float* scale = nullptr;      // [rows]
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t stride = 0;  // a multiple of 16
  // Of int8 alone. Bit k % 8 of byte k / 8 of a row: value k is an outlier.
  uint8_t* mask = nullptr;  // [rows, mask_stride]
  int64_t mask_stride = 0;
  // Per kOutlierRows rows the columns where any of them has an outlier, ascending, and how many.
  int32_t* outlier_columns = nullptr;  // [groups, columns]
  int32_t* outlier_counts = nullptr;   // [groups]

  int64_t groups() const { return (rows + kOutlierRows - 1) / kOutlierRows; }
};

// kernels/int8.h's and kernels/fp8.h's tokens of `x` [rows, columns], bf16 or f16, with the bits of
// the host's functions.
void QuantizeTokensCuda(const CudaContext& context, const Tensor& x, const TokensView& tokens);
// The lists of outliers of `tokens`, after their masks are there.
void ListOutliersCuda(const CudaContext& context, const TokensView& tokens);

// The op, and the tokens of its y, which has 16 bits: the bits of the two one after the other. Of y
// itself the outliers alone are written: all that the product reads. At most kMostRowTokenColumns
// columns; the norm's x is f32, the activation's has a gate.
inline constexpr int64_t kMostRowTokenColumns = 24576;
void NormTokensCuda(const CudaContext& context, const RmsNormArgs& args, const TokensView& tokens);
void NormTokensCuda(const CudaContext& context, const LayerNormArgs& args,
                    const TokensView& tokens);
void ActivateTokensCuda(const CudaContext& context, const ActivateArgs& args,
                        const TokensView& tokens);

}  // namespace pergola
