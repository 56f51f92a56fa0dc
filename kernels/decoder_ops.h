// The small ops of a decoder layer, each a contract with a scalar reference (`...Ref`, double
// accumulation), a SIMD version and a CUDA version. An output row depends on its input row alone,
// so rows may be cut anyhow.
//
// Tensors are f32 unless stated. Those called *activations* are f32 on the CPU and f32, bf16 or f16
// on a GPU: read exactly, computed in f32, rounded to nearest even when written. All pointers are
// to the stream's device.
#pragma once

#include <cstdint>

#include "kernels/attention_work.h"
#include "kernels/matmul.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "model/model_spec.h"

namespace pergola {

// y[r] = scale * row ids[r] - first_row of the table if it lies in [0, table.rows), else zeros
// (another rank holds it); with `accumulate` that is added to y.
struct EmbeddingArgs {
  const PackedMatrix* table = nullptr;  // [rows_local, hidden]
  int64_t first_row = 0;                // vocabulary id of the table's first row
  Tensor ids;                           // [rows] i32
  float scale = 1;
  bool accumulate = false;
  Tensor y;  // [rows, hidden]
};
void Embedding(Stream& stream, const EmbeddingArgs& args);

// Root mean square normalisation (Zhang and Sennrich, arXiv:1910.07467, equation 4), with an
// optional residual first:
//   x[r] += residual[r] if residual is given (written back to x)
//   y[r] = x[r] / sqrt(mean(x[r]^2) + epsilon) * weight
// The sum of squares runs in 16 fixed lanes (lane i takes elements i, i+16, ...), folded 8, 4, 2,
// 1: the same bits on every target.
struct RmsNormArgs {
  Tensor x;         // [rows, hidden], activations; f32 and updated if residual is given
  Tensor residual;  // [rows, hidden] activations, or no data
  const float* weight = nullptr;  // [hidden]
  float epsilon = 0;
  Tensor y;  // [rows, hidden] activations; may alias x only without residual
};
void RmsNorm(Stream& stream, const RmsNormArgs& args);
void RmsNormRef(const RmsNormArgs& args);

// Layer normalisation (Ba et al., arXiv:1607.06450, equation 3), with an optional residual first as
// above:
//   y[r] = (x[r] - m) / sqrt(mean((x[r] - m)^2) + epsilon) * weight + bias,   m = mean(x[r])
// Both sums run as RmsNorm's, the second over differences.
struct LayerNormArgs {
  Tensor x;         // [rows, hidden], activations; f32 and updated if residual is given
  Tensor residual;  // [rows, hidden] activations, or no data
  const float* weight = nullptr;  // [hidden]
  const float* bias = nullptr;    // [hidden]
  float epsilon = 0;
  Tensor y;  // [rows, hidden] activations; may alias x only without residual
};
void LayerNorm(Stream& stream, const LayerNormArgs& args);
void LayerNormRef(const LayerNormArgs& args);

// RmsNorm of each head of q and of k by itself, in place; v stays.
struct HeadNormArgs {
  Tensor qkv;  // [rows, (heads + 2 * kv_heads) * head_dim] activations, as RopeAndStore's
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  const float* query_weight = nullptr;  // [head_dim]
  const float* key_weight = nullptr;    // [head_dim]
  float epsilon = 0;
};
void HeadNorm(Stream& stream, const HeadNormArgs& args);
void HeadNormRef(const HeadNormArgs& args);

// cos and sin by position: [positions, dims/2] f32 each, computed in double, rounded once.
struct RopeTable {
  int64_t dims = 0;  // 0: nothing is rotated
  int64_t positions = 0;
  const float* cosine = nullptr;
  const float* sine = nullptr;
};

// Rotates the heads of q and k in place (half-split pairs i, i + dims/2) and stores k and v in the
// paged cache. One row of `qkv` is [q: heads_local][k: kv_heads_local][v: kv_heads_local] x
// head_dim. The cache of a layer is K and V, each [blocks, kv_heads_local, block_tokens, head_dim]
// in `kv_dtype` (f32, f16 or bf16, rounded to nearest even). slot_of_row[r] = block_id *
// block_tokens + position % block_tokens.
struct RopeAndStoreArgs {
  Tensor qkv;  // [rows, (heads + 2 * kv_heads) * head_dim] activations, updated in place
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  RopeTable rope;
  const int32_t* positions = nullptr;    // [rows]
  const int64_t* slot_of_row = nullptr;  // [rows]
  int64_t block_tokens = 0;
  DType kv_dtype = DType::kF32;
  void* k_cache = nullptr;
  void* v_cache = nullptr;
};
void RopeAndStore(Stream& stream, const RopeAndStoreArgs& args);
void RopeAndStoreRef(const RopeAndStoreArgs& args);

// Causal attention over the paged cache, which already holds the rows of this step.
//   out[r, h] = sum_p softmax_p(scale * q[r,h] . k[p, kv_of_head[h]] + slope[h] * (p - pos))
//               v[p, kv_of_head[h]],   p in (pos - window, pos]
// The slopes are ALiBi's (Press et al., arXiv:2108.12409); distances instead of positions change no
// weight and keep the scores of near keys exact.
// Online softmax over key tiles of block_tokens at fixed absolute positions, ascending (Dao et al.,
// FlashAttention, arXiv:2205.14135, algorithm 1): the bits of a row do not depend on the other rows
// of the step.
struct AttentionArgs {
  Tensor qkv;  // as above, rotated
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  const int32_t* kv_of_head = nullptr;  // [heads], each < kv_heads
  float scale = 0;
  const float* alibi_slopes = nullptr;    // [heads]; nullptr: none
  int64_t window = 0;                     // 0: unlimited; counts the token itself
  const int32_t* positions = nullptr;     // [rows]
  const int32_t* table_of_row = nullptr;  // [rows]: which block table the row uses
  const int32_t* block_tables = nullptr;  // [tables, table_stride] block ids
  int64_t table_stride = 0;
  int64_t block_tokens = 0;
  DType kv_dtype = DType::kF32;
  const void* k_cache = nullptr;
  const void* v_cache = nullptr;
  Tensor out;          // [rows, heads * head_dim] activations; may not alias qkv
  AttentionWork work;  // read by the GPU only
};
void PagedAttention(Stream& stream, const AttentionArgs& args);
void PagedAttentionRef(const AttentionArgs& args);

// The activation of an MLP; with gate (Shazeer, arXiv:2002.05202) and without:
//   y[r, i] = f(x[r, i]) * x[r, width + i]        y[r, i] = f(x[r, i])
//   silu:       f(x) = x / (1 + exp(-x))
//   gelu tanh:  f(x) = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))
//   gelu erf:   f(x) = x / 2 * (1 + erf(x / sqrt(2)))
// Errors (u = 2^-24, without the product): silu 7 u |f|, gelu tanh (8 + 4 |t|) u |f| with t twice
// tanh's argument, gelu erf 8 u |x|.
struct ActivateArgs {
  Activation activation = Activation::kSilu;
  bool gated = true;
  Tensor x;  // [rows, width] activations, with gate [rows, 2 * width]
  Tensor y;  // [rows, width] activations; without gate it may be x, else not alias it
};
void Activate(Stream& stream, const ActivateArgs& args);
void ActivateRef(const ActivateArgs& args);

// The op and then the product of its y, which is product.x and which nobody else reads: what it
// holds afterwards is unspecified. A GPU that multiplies tokens in eight bits makes those where it
// would write y; the bits of product.y are those of the two ops.
void NormMatmul(Stream& stream, const RmsNormArgs& norm, const MatmulArgs& product);
void NormMatmul(Stream& stream, const LayerNormArgs& norm, const MatmulArgs& product);
void ActivateMatmul(Stream& stream, const ActivateArgs& activate, const MatmulArgs& product);

// x = cap * tanh(x / cap), in place; cap > 0. Error 10 u |x|.
struct SoftCapArgs {
  Tensor x;  // [rows, columns]
  float cap = 0;
};
void SoftCap(Stream& stream, const SoftCapArgs& args);
void SoftCapRef(const SoftCapArgs& args);

// x += y.
struct AddArgs {
  Tensor x;  // [rows, columns]
  Tensor y;  // [rows, columns] activations
};
void Add(Stream& stream, const AddArgs& args);

// y[r] = x[rows[r]], converted to y's dtype.
struct CopyRowsArgs {
  Tensor x;                       // [any, columns] activations
  const int32_t* rows = nullptr;  // [y's rows]; nullptr: row r is r
  Tensor y;                       // [rows, columns] activations; may not alias x
};
void CopyRows(Stream& stream, const CopyRowsArgs& args);

// y[r, first_column + i] = x[r, i]: puts a narrow matrix into a wide one.
struct CopyColumnsArgs {
  Tensor x;  // [rows, columns] activations
  int64_t first_column = 0;
  Tensor y;  // [rows, first_column + columns or more], x's dtype; may not alias x
};
void CopyColumns(Stream& stream, const CopyColumnsArgs& args);

// to[at[i]] = values[i]; no index occurs twice.
struct ScatterArgs {
  const int32_t* at = nullptr;      // [count]
  const int32_t* values = nullptr;  // [count]
  int64_t count = 0;
  int32_t* to = nullptr;
};
void Scatter(Stream& stream, const ScatterArgs& args);

// ids[i] = tokens[e] where ids[i] is TokenOfEntry(e); the others stay: an id that the device itself
// has chosen a moment ago, and the host does not know yet. -1 is nobody's token. TokenOfEntry is
// its own inverse.
constexpr int32_t TokenOfEntry(int64_t entry) {
  return static_cast<int32_t>(-2 - entry);
}
constexpr bool IsTokenOfEntry(int32_t id) {
  return id <= TokenOfEntry(0);
}
struct TakeTokensArgs {
  int32_t* ids = nullptr;           // [count]
  const int32_t* tokens = nullptr;  // by entry
  int64_t count = 0;
};
void TakeTokens(Stream& stream, const TakeTokensArgs& args);

// Copies block `from` to block `to` for K and V of one layer.
struct CopyBlockArgs {
  int64_t from = 0, to = 0;
  int64_t block_bytes = 0;  // kv_heads_local * block_tokens * head_dim * bytes of the dtype
  void* k_cache = nullptr;
  void* v_cache = nullptr;
};
void CopyBlock(Stream& stream, const CopyBlockArgs& args);

}  // namespace pergola
