#include "kernels/decoder_ops.h"

#include "base/check.h"
#include "base/limits.h"
#include "kernels/kv_layout.h"

namespace pergola {
namespace {

void CheckShape(const Tensor& tensor, int64_t rows, int64_t columns) {
  PERGOLA_CHECK(tensor.rank() == 2);
  PERGOLA_CHECK_MSG(tensor.dim(0) == rows && tensor.dim(1) == columns,
                    std::to_string(tensor.dim(0)) + " x " + std::to_string(tensor.dim(1)) +
                        " instead of " + std::to_string(rows) + " x " + std::to_string(columns));
}

// f32, f16 or bf16: what activations and the KV cache may be.
bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

template <typename Args>
void CheckNorm(const Args& args) {
  const int64_t rows = args.x.dim(0), columns = args.x.dim(1);
  CheckShape(args.y, rows, columns);
  PERGOLA_CHECK(IsFloat(args.x.dtype()) && IsFloat(args.y.dtype()));
  if (args.residual.data() == nullptr) return;
  CheckShape(args.residual, rows, columns);
  PERGOLA_CHECK(args.x.data() != args.y.data() && args.x.dtype() == DType::kF32);
}

void CheckActivate(const ActivateArgs& args) {
  CheckShape(args.x, args.y.dim(0), (args.gated ? 2 : 1) * args.y.dim(1));
}

void CheckProductOf(const Tensor& y, const MatmulArgs& product) {
  CheckMatmul(product);
  PERGOLA_CHECK(product.x.data() == y.data() && product.x.dtype() == y.dtype());
  CheckShape(product.x, y.dim(0), y.dim(1));
}

}  // namespace

void Embedding(Stream& stream, const EmbeddingArgs& args) {
  CheckShape(args.y, args.ids.values(), args.table->columns());
  stream.Run(args);
}

void RmsNorm(Stream& stream, const RmsNormArgs& args) {
  CheckNorm(args);
  stream.Run(args);
}

void LayerNorm(Stream& stream, const LayerNormArgs& args) {
  CheckNorm(args);
  stream.Run(args);
}

void HeadNorm(Stream& stream, const HeadNormArgs& args) {
  CheckShape(args.qkv, args.qkv.dim(0), (args.heads + 2 * args.kv_heads) * args.head_dim);
  stream.Run(args);
}

void RopeAndStore(Stream& stream, const RopeAndStoreArgs& args) {
  CheckShape(args.qkv, args.qkv.dim(0), (args.heads + 2 * args.kv_heads) * args.head_dim);
  PERGOLA_CHECK(args.rope.dims % 2 == 0 && args.rope.dims <= args.head_dim);
  PERGOLA_CHECK(args.block_tokens > 0 && IsFloat(args.kv_dtype));
  stream.Run(args);
}

void PagedAttention(Stream& stream, const AttentionArgs& args) {
  const int64_t rows = args.qkv.dim(0);
  CheckShape(args.qkv, rows, (args.heads + 2 * args.kv_heads) * args.head_dim);
  CheckShape(args.out, rows, args.heads * args.head_dim);
  PERGOLA_CHECK(IsFloat(args.kv_dtype) && args.qkv.dtype() == args.out.dtype());
  PERGOLA_CHECK(args.head_dim >= 1 && args.head_dim <= kMaxHeadDim);
  PERGOLA_CHECK(args.block_tokens >= 16 && args.block_tokens <= kMaxBlockTokens &&
                args.block_tokens % 16 == 0);
  stream.Run(args);
}

void Activate(Stream& stream, const ActivateArgs& args) {
  CheckActivate(args);
  stream.Run(args);
}

void NormMatmul(Stream& stream, const RmsNormArgs& norm, const MatmulArgs& product) {
  CheckNorm(norm);
  CheckProductOf(norm.y, product);
  if (stream.RunAsOne(norm, product)) return;
  RmsNorm(stream, norm);
  Matmul(stream, product);
}

void NormMatmul(Stream& stream, const LayerNormArgs& norm, const MatmulArgs& product) {
  CheckNorm(norm);
  CheckProductOf(norm.y, product);
  if (stream.RunAsOne(norm, product)) return;
  LayerNorm(stream, norm);
  Matmul(stream, product);
}

void ActivateMatmul(Stream& stream, const ActivateArgs& activate, const MatmulArgs& product) {
  CheckActivate(activate);
  CheckProductOf(activate.y, product);
  if (stream.RunAsOne(activate, product)) return;
  Activate(stream, activate);
  Matmul(stream, product);
}

void SoftCap(Stream& stream, const SoftCapArgs& args) {
  CheckShape(args.x, args.x.dim(0), args.x.dim(1));
  PERGOLA_CHECK(args.cap > 0);
  stream.Run(args);
}

void Add(Stream& stream, const AddArgs& args) {
  CheckShape(args.y, args.x.dim(0), args.x.dim(1));
  stream.Run(args);
}

void CopyRows(Stream& stream, const CopyRowsArgs& args) {
  PERGOLA_CHECK(args.x.rank() == 2 && args.y.rank() == 2 && args.x.dim(1) == args.y.dim(1));
  PERGOLA_CHECK(args.rows != nullptr || args.y.dim(0) <= args.x.dim(0));
  stream.Run(args);
}

void CopyColumns(Stream& stream, const CopyColumnsArgs& args) {
  PERGOLA_CHECK(args.x.rank() == 2 && args.y.rank() == 2 && args.x.dim(0) == args.y.dim(0));
  PERGOLA_CHECK(args.x.dtype() == args.y.dtype() && args.first_column >= 0 &&
                args.first_column + args.x.dim(1) <= args.y.dim(1));
  stream.Run(args);
}

void Scatter(Stream& stream, const ScatterArgs& args) {
  PERGOLA_CHECK(args.count >= 0);
  stream.Run(args);
}

void TakeTokens(Stream& stream, const TakeTokensArgs& args) {
  PERGOLA_CHECK(args.count >= 0);
  stream.Run(args);
}

void CopyBlock(Stream& stream, const CopyBlockArgs& args) {
  PERGOLA_CHECK(args.from >= 0 && args.to >= 0 && args.block_bytes >= 0);
  if (args.from != args.to) stream.Run(args);
}

}  // namespace pergola
