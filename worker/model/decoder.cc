#include "worker/model/decoder.h"

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"

namespace pergola {
namespace {

Tensor F32Tensor(const float* data, int64_t rows, int64_t columns) {
  return Tensor(const_cast<float*>(data), DType::kF32, {rows, columns});
}

void Norm(Stream& stream, const RmsNormArgs& args) {
  RmsNorm(stream, args);
}
void Norm(Stream& stream, const LayerNormArgs& args) {
  LayerNorm(stream, args);
}

// Says which sum over the ranks failed; layer -1: of none.
absl::Status InReduction(const absl::Status& status, int64_t layer, const char* operation) {
  if (status.ok()) return status;
  return Prefixed(
      status, ToStd(layer < 0 ? absl::StrCat("all-reduce of the ", operation)
                              : absl::StrCat("layer ", layer, ": all-reduce of the ", operation)));
}

// y = x W^T + bias, of a projection that is one matrix.
MatmulArgs ProductOf(const Projection& projection, const Tensor& x, const Tensor& y) {
  MatmulArgs args;
  args.x = x;
  args.w = &projection.parts[0];
  args.bias = projection.bias.empty() ? nullptr : projection.bias.data();
  args.y = y;
  return args;
}

// Appends cosine and sine by position: the table's contract, computed in double, rounded once.
void AppendRopeTable(const RopeSpec& rope, int64_t positions, std::vector<float>* cosine,
                     std::vector<float>* sine) {
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t i = 0; i < rope.dims / 2; ++i) {
      const double angle =
          static_cast<double>(position) * static_cast<double>(rope.inverse_frequency[i]);
      cosine->push_back(static_cast<float>(rope.magnitude * std::cos(angle)));
      sine->push_back(static_cast<float>(rope.magnitude * std::sin(angle)));
    }
  }
}

}  // namespace

Decoder::Decoder(const ModelSpec& spec, const RankLayout& layout, const DecoderBounds& bounds,
                 const StageWeights& weights, const KvCache& kv, Stream& stream,
                 DeviceReducer& reducer)
    : spec_(spec),
      layout_(layout),
      weights_(weights),
      kv_(kv),
      stream_(stream),
      reducer_(reducer),
      bounds_(bounds),
      heads_local_(layout.heads.size()),
      kv_heads_local_(layout.kv_heads.size()),
      kv_of_head_(stream, layout.kv_of_head),
      head_groups_(stream, bounds.buffers.head_groups),
      parts_done_(stream, bounds.buffers.parts_done),
      normed_(stream, bounds.buffers.normed),
      qkv_(stream, bounds.buffers.qkv),
      attended_(stream, bounds.buffers.attended),
      gate_up_(stream, bounds.buffers.gate_up),
      activated_(stream, bounds.buffers.activated),
      branch_(stream, bounds.buffers.branch),
      part_(stream, bounds.buffers.part),
      picked_rows_(stream, bounds.buffers.picked_rows),
      picked_(stream, bounds.buffers.picked) {
  std::vector<float> cosine, sine;
  for (const RopeSpec* rope : {&spec.rope, &spec.local_rope}) {
    AppendRopeTable(*rope, bounds.context_length, &cosine, &sine);
  }
  rope_cosine_ = DeviceVector<float>(stream, cosine);
  rope_sine_ = DeviceVector<float>(stream, sine);
  PlanHeads();
  if (!spec.alibi_slopes.empty()) {
    const auto first = spec.alibi_slopes.begin() + layout.heads.begin;
    alibi_slopes_ = DeviceVector<float>(stream, std::vector<float>(first, first + heads_local_));
  }
}

void Decoder::PlanHeads() {
  if (head_groups_.size() == 0) return;
  const std::vector<int32_t> groups = PlanHeadGroups(layout_.kv_of_head.data(), heads_local_);
  head_group_count_ = static_cast<int64_t>(groups.size()) / 2;
  largest_head_group_ = LargestHeadGroup(groups);
  stream_.CopyToDevice(head_groups_.data(), groups.data(),
                       static_cast<int64_t>(groups.size() * sizeof(int32_t)));
  // An error stays with the stream.
  static_cast<void>(stream_.Synchronize());
}

int64_t Decoder::bytes() const {
  int64_t total =
      rope_cosine_.bytes() + rope_sine_.bytes() + kv_of_head_.bytes() + alibi_slopes_.bytes();
  for (const DeviceBuffer* buffer :
       {&head_groups_, &parts_done_, &normed_, &qkv_, &attended_, &gate_up_, &activated_, &branch_,
        &part_, &picked_rows_, &picked_}) {
    total += buffer->size();
  }
  return total;
}

Tensor Decoder::Activations(const DeviceBuffer& buffer, int64_t rows, int64_t columns) const {
  PERGOLA_CHECK(DTypeBytes(bounds_.activation, rows * columns) <= buffer.size());
  return Tensor(buffer.data(), bounds_.activation, {rows, columns});
}

template <typename Op>
auto Decoder::WithNorm(const NormWeights& norm, const Tensor& residual, const Tensor& x,
                       const Tensor& y, const Op& op) const {
  const auto fill = [&](auto args) {
    args.x = x;
    args.residual = residual;
    args.weight = norm.weight.data();
    args.epsilon = spec_.norm_epsilon;
    args.y = y;
    return args;
  };
  if (spec_.norm == NormKind::kRms) return op(fill(RmsNormArgs()));
  LayerNormArgs args = fill(LayerNormArgs());
  args.bias = norm.bias.data();
  return op(args);
}

void Decoder::Normalise(const NormWeights& norm, const Tensor& x, const Tensor& y) {
  WithNorm(norm, Tensor(), x, y, [&](const auto& args) { Norm(stream_, args); });
}

// Adds what the branch before gave, if there was one, to the stream, and leaves in entry.y the
// product of its norm, with which the next branch, attention or MLP, begins. The stage's ranks meet
// here: sum, residual and norm can be one, norm and product too.
absl::Status Decoder::BeginBranch(const NormWeights& norm, const Entry& entry, float* hidden) {
  const int64_t rows = entry.y.dim(0);
  const Tensor x = F32Tensor(hidden, rows, spec_.hidden);
  const Tensor normed = Activations(normed_, rows, spec_.hidden);
  const Branch before = std::exchange(before_, Branch());
  const Tensor added = before.open ? Activations(branch_, rows, spec_.hidden) : Tensor();
  const bool whole = entry.projection.parts.size() == 1;
  const bool one = whole && !spec_.residual_after_norm;  // only the product reads the normed stream
  MatmulArgs product = ProductOf(entry.projection, normed, entry.y);
  product.activation = entry.activation;
  const auto op = [&](const auto& args) {
    if (before.partial) return reducer_.AllReduceNorm(args, one ? &product : nullptr);
    if (one) {
      NormMatmul(stream_, args, product);
    } else {
      Norm(stream_, args);
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(
      InReduction(WithNorm(norm, added, x, normed, op), before.layer, before.operation));
  if (spec_.residual_after_norm) CopyRows(stream_, CopyRowsArgs{normed, nullptr, x});
  if (!whole) {
    ProjectParts(entry, normed);
  } else if (!one) {
    Matmul(stream_, product);
  }
  return absl::OkStatus();
}

// A norm of the branch itself needs its sum at once.
absl::Status Decoder::EndBranch(const NormWeights& post_norm, int64_t rows, const Branch& branch) {
  before_ = branch;
  before_.open = true;
  before_.partial = !spec_.post_norms;
  if (!spec_.post_norms) return absl::OkStatus();
  const Tensor x = Activations(branch_, rows, spec_.hidden);
  RETURN_IF_ERROR(InReduction(reducer_.AllReduce(x), branch.layer, branch.operation));
  Normalise(post_norm, x, x);
  return absl::OkStatus();
}

// Adds the last branch to the stream: the norm that would have done it is in another stage, or is
// the final norm of some rows only.
absl::Status Decoder::EndLayers(int64_t rows, float* hidden) {
  const Branch before = std::exchange(before_, Branch());
  if (!before.open) return absl::OkStatus();
  const AddArgs args{F32Tensor(hidden, rows, spec_.hidden),
                     Activations(branch_, rows, spec_.hidden)};
  if (before.partial) {
    return InReduction(reducer_.AllReduceAdd(args), before.layer, before.operation);
  }
  Add(stream_, args);
  return absl::OkStatus();
}

// A matmul writes dense rows, so the outputs of several parts are computed aside and put together.
void Decoder::ProjectParts(const Entry& entry, const Tensor& x) {
  int64_t first = 0;
  for (const PackedMatrix& part : entry.projection.parts) {
    const Tensor y = Activations(part_, x.dim(0), part.rows());
    MatmulArgs product = ProductOf(entry.projection, x, y);
    product.w = &part;
    if (product.bias != nullptr) product.bias += first;
    product.activation = entry.activation;
    Matmul(stream_, product);
    CopyColumns(stream_, CopyColumnsArgs{y, first, entry.y});
    first += part.rows();
  }
}

absl::Status Decoder::Embed(const StepRows& rows, const int32_t* ids, float* hidden) {
  const Tensor x = F32Tensor(hidden, rows.count, spec_.hidden);
  EmbeddingArgs args;
  args.table = &weights_.embedding;
  args.first_row = layout_.vocabulary.begin;
  args.ids = Tensor(const_cast<int32_t*>(ids), DType::kI32, {rows.count});
  args.scale = spec_.embedding_scale;
  args.y = x;
  Embedding(stream_, args);
  if (spec_.learned_positions) {
    // The learned position's row, where this rank holds it.
    args.table = &weights_.positions;
    args.first_row = layout_.positions.begin;
    args.ids = Tensor(const_cast<int32_t*>(rows.positions), DType::kI32, {rows.count});
    args.scale = 1;
    args.accumulate = true;
    Embedding(stream_, args);
  }
  RETURN_IF_ERROR(InReduction(reducer_.AllReduce(x), -1, "embedding"));
  if (spec_.embedding_norm) Normalise(weights_.embedding_norm, x, x);
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
  table.cosine = rope_cosine_.data() + offset;
  table.sine = rope_sine_.data() + offset;
  return table;
}

void Decoder::Attend(int64_t layer, const StepRows& rows, const Tensor& qkv) {
  AttentionArgs args;
  args.qkv = qkv;
  args.heads = heads_local_;
  args.kv_heads = kv_heads_local_;
  args.head_dim = spec_.head_dim;
  args.kv_of_head = kv_of_head_.data();
  args.scale = spec_.ScaleOf(layer);
  args.alibi_slopes = alibi_slopes_.empty() ? nullptr : alibi_slopes_.data();
  args.window = spec_.WindowOf(layer);
  args.positions = rows.positions;
  args.table_of_row = rows.table_of_row;
  args.block_tables = rows.block_tables;
  args.table_stride = rows.table_stride;
  args.block_tokens = kv_.shape().block_tokens;
  args.kv_dtype = kv_.shape().dtype;
  args.k_cache = kv_.K(layer);
  args.v_cache = kv_.V(layer);
  args.work = rows.attention;
  args.work.head_groups = reinterpret_cast<const int32_t*>(head_groups_.data());
  args.work.head_group_count = head_group_count_;
  args.work.largest_head_group = largest_head_group_;
  args.work.decode_done = reinterpret_cast<int32_t*>(parts_done_.data());
  args.out = Activations(attended_, rows.count, heads_local_ * spec_.head_dim);
  PagedAttention(stream_, args);
}

// Adds what the layer before left in branch_ to the stream and leaves there what attention adds.
absl::Status Decoder::Attention(int64_t layer, const StepRows& rows, float* hidden) {
  const LayerWeights& weights = weights_.Layer(layer);
  const Tensor qkv = Activations(qkv_, rows.count, weights.qkv.rows);
  RETURN_IF_ERROR(BeginBranch(weights.attention_norm, {weights.qkv, qkv, std::nullopt}, hidden));
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

  const Tensor attended = Activations(attended_, rows.count, heads_local_ * spec_.head_dim);
  Matmul(stream_,
         ProductOf(weights.output, attended, Activations(branch_, rows.count, spec_.hidden)));
  return EndBranch(weights.attention_post_norm, rows.count, {layer, "attention output"});
}

// Adds what attention left in branch_ to the stream and leaves there what the MLP adds.
absl::Status Decoder::Mlp(int64_t layer, const StepRows& rows, float* hidden) {
  const LayerWeights& weights = weights_.Layer(layer);
  const Tensor activated = Activations(activated_, rows.count, layout_.ffn.size());
  const MatmulArgs down =
      ProductOf(weights.down, activated, Activations(branch_, rows.count, spec_.hidden));
  if (spec_.gated_mlp) {
    const Tensor gate_up = Activations(gate_up_, rows.count, weights.gate_up.rows);
    RETURN_IF_ERROR(
        BeginBranch(weights.mlp_norm, {weights.gate_up, gate_up, std::nullopt}, hidden));
    ActivateMatmul(stream_, {spec_.activation, true, gate_up, activated}, down);
  } else {
    RETURN_IF_ERROR(
        BeginBranch(weights.mlp_norm, {weights.gate_up, activated, spec_.activation}, hidden));
    Matmul(stream_, down);
  }
  return EndBranch(weights.mlp_post_norm, rows.count, {layer, "MLP output"});
}

absl::Status Decoder::Forward(const StepRows& rows, const int32_t* ids, float* hidden) {
  PERGOLA_CHECK(rows.count <= bounds_.step_rows);
  before_ = Branch();
  if (layout_.first_stage()) RETURN_IF_ERROR(Embed(rows, ids, hidden));
  for (int64_t layer = layout_.layers.begin; layer < layout_.layers.end; ++layer) {
    RETURN_IF_ERROR(Attention(layer, rows, hidden));
    RETURN_IF_ERROR(Mlp(layer, rows, hidden));
  }
  return EndLayers(rows.count, hidden);
}

void Decoder::Logits(const float* hidden, absl::Span<const int32_t> rows, float* out) {
  const auto count = static_cast<int64_t>(rows.size());
  PERGOLA_CHECK(layout_.last_stage() && count <= bounds_.logit_rows);
  auto* indices = reinterpret_cast<int32_t*>(picked_rows_.data());
  stream_.CopyToDevice(indices, rows.data(), count * static_cast<int64_t>(sizeof(int32_t)));
  const Tensor picked = F32Tensor(reinterpret_cast<float*>(picked_.data()), count, spec_.hidden);
  const Tensor normed = Activations(normed_, count, spec_.hidden);
  CopyRows(stream_,
           CopyRowsArgs{F32Tensor(hidden, bounds_.step_rows, spec_.hidden), indices, picked});
  Normalise(weights_.final_norm, picked, normed);
  MatmulArgs args;
  args.x = normed;
  args.w = &weights_.lm_head();
  args.y = F32Tensor(out, count, layout_.vocabulary.size());
  Matmul(stream_, args);
  if (spec_.logit_cap > 0) SoftCap(stream_, SoftCapArgs{args.y, spec_.logit_cap});
}

}  // namespace pergola
