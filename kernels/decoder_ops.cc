#include "kernels/decoder_ops.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cpu/decoder_ops_cpu.h"
#include "kernels/thread_pool.h"

namespace pergola {
namespace {

bool IsReference(const Stream& stream) {
  return stream.cpu_target() == CpuTarget::kReference;
}

void CheckShape(const Tensor& tensor, int64_t rows, int64_t columns) {
  PERGOLA_CHECK(tensor.rank() == 2 && tensor.dtype() == DType::kF32);
  PERGOLA_CHECK_MSG(tensor.dim(0) == rows && tensor.dim(1) == columns,
                    std::to_string(tensor.dim(0)) + " x " + std::to_string(tensor.dim(1)) +
                        " instead of " + std::to_string(rows) + " x " + std::to_string(columns));
}

bool IsKvDType(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

}  // namespace

void Embedding(Stream& stream, const EmbeddingArgs& args) {
  const int64_t rows = args.ids.values();
  const int64_t hidden = args.table->columns();
  CheckShape(args.y, rows, hidden);
  const int32_t* ids = args.ids.i32();
  float* y = args.y.f32();
  stream.pool().ParallelFor(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t row = ids[r] - args.first_row;
      if (row >= 0 && row < args.table->rows()) {
        args.table->UnpackRow(row, y + r * hidden);
      } else {
        std::fill_n(y + r * hidden, hidden, 0.0F);
      }
    }
  });
}

void RmsNorm(Stream& stream, const RmsNormArgs& args) {
  CheckShape(args.y, args.x.dim(0), args.x.dim(1));
  PERGOLA_CHECK(args.residual == nullptr || args.x.data() != args.y.data());
  if (IsReference(stream)) return RmsNormRef(args);
  RmsNormCpu(stream, args);
}

void LayerNorm(Stream& stream, const LayerNormArgs& args) {
  CheckShape(args.y, args.x.dim(0), args.x.dim(1));
  PERGOLA_CHECK(args.residual == nullptr || args.x.data() != args.y.data());
  if (IsReference(stream)) return LayerNormRef(args);
  LayerNormCpu(stream, args);
}

void HeadNorm(Stream& stream, const HeadNormArgs& args) {
  CheckShape(args.qkv, args.qkv.dim(0), (args.heads + 2 * args.kv_heads) * args.head_dim);
  if (IsReference(stream)) return HeadNormRef(args);
  HeadNormCpu(stream, args);
}

void RopeAndStore(Stream& stream, const RopeAndStoreArgs& args) {
  CheckShape(args.qkv, args.qkv.dim(0), (args.heads + 2 * args.kv_heads) * args.head_dim);
  PERGOLA_CHECK(args.rope.dims % 2 == 0 && args.rope.dims <= args.head_dim);
  PERGOLA_CHECK(args.block_tokens > 0 && IsKvDType(args.kv_dtype));
  if (IsReference(stream)) return RopeAndStoreRef(args);
  RopeAndStoreCpu(stream, args);
}

void PagedAttention(Stream& stream, const AttentionArgs& args) {
  const int64_t rows = args.qkv.dim(0);
  CheckShape(args.qkv, rows, (args.heads + 2 * args.kv_heads) * args.head_dim);
  CheckShape(args.out, rows, args.heads * args.head_dim);
  PERGOLA_CHECK(IsKvDType(args.kv_dtype));
  PERGOLA_CHECK(args.head_dim >= 1 && args.head_dim <= kMaxHeadDim);
  PERGOLA_CHECK(args.block_tokens >= 16 && args.block_tokens <= kMaxBlockTokens &&
                args.block_tokens % 16 == 0);
  if (IsReference(stream)) return PagedAttentionRef(args);
  PagedAttentionCpu(stream, args);
}

void Activate(Stream& stream, const ActivateArgs& args) {
  CheckShape(args.x, args.y.dim(0), (args.gated ? 2 : 1) * args.y.dim(1));
  if (IsReference(stream)) return ActivateRef(args);
  ActivateCpu(stream, args);
}

void SoftCap(Stream& stream, const SoftCapArgs& args) {
  CheckShape(args.x, args.x.dim(0), args.x.dim(1));
  PERGOLA_CHECK(args.cap > 0);
  if (IsReference(stream)) return SoftCapRef(args);
  SoftCapCpu(stream, args);
}

void CopyBlock(Stream& /*stream*/, const CopyBlockArgs& args) {
  PERGOLA_CHECK(args.from >= 0 && args.to >= 0 && args.block_bytes >= 0);
  if (args.from == args.to) return;
  for (void* cache : {args.k_cache, args.v_cache}) {
    auto* bytes = static_cast<uint8_t*>(cache);
    std::memcpy(bytes + args.to * args.block_bytes, bytes + args.from * args.block_bytes,
                static_cast<size_t>(args.block_bytes));
  }
}

}  // namespace pergola
