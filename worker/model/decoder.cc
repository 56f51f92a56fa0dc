#include "worker/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace pergola {
namespace {

int64_t F32Bytes(int64_t values) {
  return values * static_cast<int64_t>(sizeof(float));
}

float* F32(const HostBuffer& buffer) {
  return reinterpret_cast<float*>(buffer.data());
}

Tensor F32Tensor(const float* data, int64_t rows, int64_t columns) {
  return Tensor(const_cast<float*>(data), DType::kF32, {rows, columns});
}

// The table's contract: computed in double, rounded once.
void FillRopeTable(const RopeSpec& rope, int64_t positions, float* cosine, float* sine) {
  const int64_t pairs = rope.dims / 2;
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle =
          static_cast<double>(position) * static_cast<double>(rope.inverse_frequency[i]);
      cosine[position * pairs + i] = static_cast<float>(rope.magnitude * std::cos(angle));
      sine[position * pairs + i] = static_cast<float>(rope.magnitude * std::sin(angle));
    }
  }
}

}  // namespace

Decoder::Decoder(const ModelSpec& spec, const RankLayout& layout, const DecoderBounds& bounds,
                 const StageWeights& weights, const KvCache& kv, Stream& stream,
                 StageCommunicator* communicator)
    : spec_(spec),
      layout_(layout),
      weights_(weights),
      kv_(kv),
      stream_(stream),
      communicator_(communicator),
      bounds_(bounds),
      heads_local_(layout.heads.size()),
      kv_heads_local_(layout.kv_heads.size()) {
  const DecoderBuffers& sizes = bounds_.buffers;
  rope_cosine_ = HostBuffer(sizes.rope);
  rope_sine_ = HostBuffer(sizes.rope);
  normed_ = HostBuffer(sizes.normed);
  qkv_ = HostBuffer(sizes.qkv);
  attended_ = HostBuffer(sizes.attended);
  gate_up_ = HostBuffer(sizes.gate_up);
  activated_ = HostBuffer(sizes.activated);
  branch_ = HostBuffer(sizes.branch);
  part_ = HostBuffer(sizes.part);
  picked_ = HostBuffer(sizes.picked);
  FillRopeTable(spec.rope, bounds.context_length, F32(rope_cosine_), F32(rope_sine_));
  const int64_t local = bounds.context_length * spec.rope.dims / 2;
  FillRopeTable(spec.local_rope, bounds.context_length, F32(rope_cosine_) + local,
                F32(rope_sine_) + local);
}

int64_t Decoder::bytes() const {
  int64_t total = 0;
  for (const HostBuffer* buffer : {&rope_cosine_, &rope_sine_, &normed_, &qkv_, &attended_,
                                   &gate_up_, &activated_, &branch_, &part_, &picked_}) {
    total += buffer->size();
  }
  return total;
}

absl::Status Decoder::Reduce(float* data, int64_t rows, int64_t layer, const char* operation) {
  if (communicator_ == nullptr) return absl::OkStatus();
  // Also with one rank: the communicator moves the group's messages on while the step runs.
  absl::Status status = communicator_->AllReduce(data, rows * spec_.hidden);
  if (status.ok()) return status;
  return Prefixed(
      status, ToStd(layer < 0 ? absl::StrCat("all-reduce of the ", operation)
                              : absl::StrCat("layer ", layer, ": all-reduce of the ", operation)));
}

void Decoder::Normalise(const NormWeights& norm, const float* residual, int64_t rows, float* x,
                        float* y) {
  const auto fill = [&](auto args) {
    args.x = F32Tensor(x, rows, spec_.hidden);
    args.residual = residual;
    args.weight = norm.weight.data();
    args.epsilon = spec_.norm_epsilon;
    args.y = F32Tensor(y, rows, spec_.hidden);
    return args;
  };
  if (spec_.norm == NormKind::kRms) return RmsNorm(stream_, fill(RmsNormArgs()));
  LayerNormArgs args = fill(LayerNormArgs());
  args.bias = norm.bias.data();
  LayerNorm(stream_, args);
}

// Adds `residual` (what the branch before gave, or null) to the stream and leaves in normed_ what
// the next branch, attention or MLP, reads.
void Decoder::BeginBranch(const NormWeights& norm, const float* residual, int64_t rows,
                          float* hidden) {
  Normalise(norm, residual, rows, hidden, F32(normed_));
  if (!spec_.residual_after_norm) return;
  std::memcpy(hidden, F32(normed_), F32Bytes(rows * spec_.hidden));
}

// Sums branch_ over the stage's ranks.
absl::Status Decoder::EndBranch(const NormWeights& norm, int64_t rows, int64_t layer,
                                const char* operation) {
  RETURN_IF_ERROR(Reduce(F32(branch_), rows, layer, operation));
  if (spec_.post_norms) Normalise(norm, nullptr, rows, F32(branch_), F32(branch_));
  return absl::OkStatus();
}

// y = x W^T + bias. A matmul writes dense rows, so the outputs of several parts are computed aside
// and put together.
void Decoder::Project(const Projection& projection, const float* x, int64_t rows, float* y) {
  const float* bias = projection.bias.empty() ? nullptr : projection.bias.data();
  const bool whole = projection.parts.size() == 1;
  int64_t first = 0;
  for (const PackedMatrix& part : projection.parts) {
    PERGOLA_CHECK(whole || F32Bytes(rows * part.rows()) <= part_.size());
    MatmulArgs args;
    args.x = F32Tensor(x, rows, projection.columns);
    args.w = &part;
    args.bias = bias == nullptr ? nullptr : bias + first;
    args.y = F32Tensor(whole ? y : F32(part_), rows, part.rows());
    Matmul(stream_, args);
    if (!whole) {
      for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(y + row * projection.rows + first, F32(part_) + row * part.rows(),
                    F32Bytes(part.rows()));
      }
    }
    first += part.rows();
  }
}

// Adds the learned position's row where this rank holds it.
void Decoder::EmbedPositions(const StepRows& rows, float* hidden) {
  EmbeddingArgs args;
  args.table = &weights_.positions;
  args.first_row = layout_.positions.begin;
  args.ids = Tensor(const_cast<int32_t*>(rows.positions), DType::kI32, {rows.count});
  args.y = F32Tensor(F32(branch_), rows.count, spec_.hidden);
  Embedding(stream_, args);
  stream_.Synchronize();
  for (int64_t i = 0; i < rows.count * spec_.hidden; ++i) hidden[i] += F32(branch_)[i];
}

absl::Status Decoder::Embed(const StepRows& rows, const int32_t* ids, float* hidden) {
  EmbeddingArgs args;
  args.table = &weights_.embedding;
  args.first_row = layout_.vocabulary.begin;
  args.ids = Tensor(const_cast<int32_t*>(ids), DType::kI32, {rows.count});
  args.y = F32Tensor(hidden, rows.count, spec_.hidden);
  Embedding(stream_, args);
  if (spec_.embedding_scale != 1) {
    stream_.Synchronize();
    for (int64_t i = 0; i < rows.count * spec_.hidden; ++i) hidden[i] *= spec_.embedding_scale;
  }
  if (spec_.learned_positions) EmbedPositions(rows, hidden);
  RETURN_IF_ERROR(Reduce(hidden, rows.count, -1, "embedding"));
  if (spec_.embedding_norm) {
    Normalise(weights_.embedding_norm, nullptr, rows.count, hidden, hidden);
  }
  return absl::OkStatus();
}

void Decoder::NormaliseHeads(const LayerWeights& weights, const Tensor& qkv) {
  HeadNormArgs args;
  args.qkv = qkv;
  args.heads = heads_local_;
  args.kv_heads = kv_heads_local_;
  args.head_dim = spec_.head_dim;
  args.query_weight = weights.query_norm.weight.data();
  args.key_weight = weights.key_norm.weight.data();
  args.epsilon = spec_.norm_epsilon;
  HeadNorm(stream_, args);
}

RopeTable Decoder::RopeOf(int64_t layer) const {
  const bool local = spec_.UsesLocalRope(layer);
  const int64_t offset = local ? bounds_.context_length * spec_.rope.dims / 2 : 0;
  RopeTable table;
  table.dims = local ? spec_.local_rope.dims : spec_.rope.dims;
  table.positions = bounds_.context_length;
  table.cosine = F32(rope_cosine_) + offset;
  table.sine = F32(rope_sine_) + offset;
  return table;
}

void Decoder::Attend(int64_t layer, const StepRows& rows, const Tensor& qkv) {
  AttentionArgs args;
  args.qkv = qkv;
  args.heads = heads_local_;
  args.kv_heads = kv_heads_local_;
  args.head_dim = spec_.head_dim;
  args.kv_of_head = layout_.kv_of_head.data();
  args.scale = spec_.ScaleOf(layer);
  if (!spec_.alibi_slopes.empty()) {
    args.alibi_slopes = spec_.alibi_slopes.data() + layout_.heads.begin;
  }
  args.window = spec_.WindowOf(layer);
  args.positions = rows.positions;
  args.table_of_row = rows.table_of_row;
  args.block_tables = rows.block_tables;
  args.table_stride = rows.table_stride;
  args.block_tokens = kv_.shape().block_tokens;
  args.kv_dtype = kv_.shape().dtype;
  args.k_cache = kv_.K(layer);
  args.v_cache = kv_.V(layer);
  args.out = F32Tensor(F32(attended_), rows.count, heads_local_ * spec_.head_dim);
  PagedAttention(stream_, args);
}

// Adds `residual` (the layer before, or null) to the stream and leaves what attention adds in
// branch_.
absl::Status Decoder::Attention(int64_t layer, const StepRows& rows, const float* residual,
                                float* hidden) {
  const LayerWeights& weights = weights_.Layer(layer);
  BeginBranch(weights.attention_norm, residual, rows.count, hidden);
  Project(weights.qkv, F32(normed_), rows.count, F32(qkv_));
  const Tensor qkv = F32Tensor(F32(qkv_), rows.count, weights.qkv.rows);
  if (spec_.head_norms) NormaliseHeads(weights, qkv);

  RopeAndStoreArgs store;
  store.qkv = qkv;
  store.heads = heads_local_;
  store.kv_heads = kv_heads_local_;
  store.head_dim = spec_.head_dim;
  store.rope = RopeOf(layer);
  store.positions = rows.positions;
  store.slot_of_row = rows.slot_of_row;
  store.block_tokens = kv_.shape().block_tokens;
  store.kv_dtype = kv_.shape().dtype;
  store.k_cache = kv_.K(layer);
  store.v_cache = kv_.V(layer);
  RopeAndStore(stream_, store);
  Attend(layer, rows, qkv);

  Project(weights.output, F32(attended_), rows.count, F32(branch_));
  return EndBranch(weights.attention_post_norm, rows.count, layer, "attention output");
}

// Adds what attention left in branch_ to the stream and leaves there what the MLP adds.
absl::Status Decoder::Mlp(int64_t layer, const StepRows& rows, float* hidden) {
  const LayerWeights& weights = weights_.Layer(layer);
  BeginBranch(weights.mlp_norm, F32(branch_), rows.count, hidden);
  Project(weights.gate_up, F32(normed_), rows.count, F32(gate_up_));
  ActivateArgs args;
  args.activation = spec_.activation;
  args.gated = spec_.gated_mlp;
  args.x = F32Tensor(F32(gate_up_), rows.count, weights.gate_up.rows);
  args.y = F32Tensor(F32(activated_), rows.count, layout_.ffn.size());
  Activate(stream_, args);
  Project(weights.down, F32(activated_), rows.count, F32(branch_));
  return EndBranch(weights.mlp_post_norm, rows.count, layer, "MLP output");
}

absl::Status Decoder::Forward(const StepRows& rows, const int32_t* ids, float* hidden) {
  PERGOLA_CHECK(rows.count <= bounds_.step_rows);
  if (layout_.first_stage()) RETURN_IF_ERROR(Embed(rows, ids, hidden));
  const float* residual = nullptr;
  for (int64_t layer = layout_.layers.begin; layer < layout_.layers.end; ++layer) {
    RETURN_IF_ERROR(Attention(layer, rows, residual, hidden));
    RETURN_IF_ERROR(Mlp(layer, rows, hidden));
    residual = F32(branch_);
  }
  stream_.Synchronize();
  // The next layer's norm would have added this; it is in another stage, or is the final norm of
  // some rows only.
  if (residual == nullptr) return absl::OkStatus();
  for (int64_t i = 0; i < rows.count * spec_.hidden; ++i) hidden[i] += residual[i];
  return absl::OkStatus();
}

void Decoder::Logits(const float* hidden, absl::Span<const int64_t> rows, float* out) {
  const int64_t count = static_cast<int64_t>(rows.size());
  PERGOLA_CHECK(layout_.last_stage() && count <= bounds_.logit_rows);
  float* picked = F32(picked_);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(picked + i * spec_.hidden, hidden + rows[i] * spec_.hidden, F32Bytes(spec_.hidden));
  }
  Normalise(weights_.final_norm, nullptr, count, picked, F32(normed_));
  MatmulArgs args;
  args.x = F32Tensor(F32(normed_), count, spec_.hidden);
  args.w = &weights_.lm_head();
  args.y = F32Tensor(out, count, layout_.vocabulary.size());
  Matmul(stream_, args);
  if (spec_.logit_cap > 0) SoftCap(stream_, SoftCapArgs{args.y, spec_.logit_cap});
  stream_.Synchronize();
}

}  // namespace pergola
