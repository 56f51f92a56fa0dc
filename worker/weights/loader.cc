#include "worker/weights/loader.h"

#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "model/device_piece.h"
#include "worker/weights/weight_item.h"

namespace pergola {
namespace {

// Allocates a stage's weights, in the order in which they will be read, and says what goes where.
class StageBuilder {
 public:
  StageBuilder(const Checkpoint& checkpoint, const RankLayout& layout,
               const std::vector<WeightItem>& items, Stream& stream)
      : checkpoint_(checkpoint), layout_(layout), items_(items), stream_(stream) {
    for (const WeightItem& item : items_) {
      by_role_[{item.binding->role, item.binding->layer}] = &item;
    }
  }

  absl::StatusOr<StageWeights> Build();
  const StagePieces& pieces() const { return stage_; }

 private:
  const WeightItem* Find(Role role, int64_t layer) const {
    const auto found = by_role_.find({role, layer});
    return found == by_role_.end() ? nullptr : found->second;
  }
  absl::StatusOr<const WeightItem*> Need(Role role, int64_t layer) const;
  absl::StatusOr<LayerWeights> MakeLayer(int64_t layer);
  absl::StatusOr<PackedMatrix> MakeMatrix(Role role);
  absl::StatusOr<Projection> MakeProjection(int64_t layer, const std::vector<Role>& roles,
                                            const std::vector<Role>& bias_roles);
  NormWeights MakeNorm(Role role, std::optional<Role> bias, int64_t layer);
  absl::Status MakeLayerNorms(int64_t layer, LayerWeights* weights);
  void AddPiece(const PackedMatrix& matrix, std::vector<WeightPiece::Source> sources,
                int64_t layer);
  DeviceVector<float> MakeVector(std::vector<WeightPiece::Source> sources, int64_t size,
                                 int64_t layer, bool plus_one);
  std::string Dtypes() const;

  const Checkpoint& checkpoint_;
  const RankLayout& layout_;
  const std::vector<WeightItem>& items_;
  Stream& stream_;
  absl::flat_hash_map<std::pair<Role, int64_t>, const WeightItem*> by_role_;
  StagePieces stage_;
};

absl::StatusOr<const WeightItem*> StageBuilder::Need(Role role, int64_t layer) const {
  const WeightItem* item = Find(role, layer);
  if (item != nullptr) return item;
  return absl::InvalidArgumentError(absl::StrCat("the checkpoint has no ", RoleName(role, layer)));
}

void StageBuilder::AddPiece(const PackedMatrix& matrix, std::vector<WeightPiece::Source> sources,
                            int64_t layer) {
  WeightPiece piece;
  piece.sources = std::move(sources);
  piece.shape = matrix.shape();
  piece.memory = matrix.memory();
  piece.bytes = matrix.bytes();
  piece.layer = layer;
  stage_.pieces.push_back(std::move(piece));
}

DeviceVector<float> StageBuilder::MakeVector(std::vector<WeightPiece::Source> sources, int64_t size,
                                             int64_t layer, bool plus_one) {
  DeviceVector<float> vector(stream_, size);
  WeightPiece piece;
  piece.sources = std::move(sources);
  piece.vector = true;
  piece.memory = vector.memory();
  piece.bytes = vector.bytes();
  piece.layer = layer;
  piece.plus_one = plus_one;
  stage_.pieces.push_back(std::move(piece));
  return vector;
}

// Nothing where the model has no such norm.
NormWeights StageBuilder::MakeNorm(Role role, std::optional<Role> bias, int64_t layer) {
  NormWeights norm;
  const WeightItem* item = Find(role, layer);
  if (item == nullptr) return norm;
  norm.weight = MakeVector({{item, 0}}, item->rows(), layer, checkpoint_.spec().norm_plus_one);
  const WeightItem* bias_item = bias.has_value() ? Find(*bias, layer) : nullptr;
  if (bias_item == nullptr) return norm;
  norm.bias = MakeVector({{bias_item, 0}}, bias_item->rows(), layer, /*plus_one=*/false);
  return norm;
}

absl::Status StageBuilder::MakeLayerNorms(int64_t layer, LayerWeights* weights) {
  RETURN_IF_ERROR(Need(Role::kAttentionNorm, layer).status());
  RETURN_IF_ERROR(Need(Role::kMlpNorm, layer).status());
  weights->attention_norm = MakeNorm(Role::kAttentionNorm, Role::kAttentionNormBias, layer);
  weights->query_norm = MakeNorm(Role::kQueryNorm, std::nullopt, layer);
  weights->key_norm = MakeNorm(Role::kKeyNorm, std::nullopt, layer);
  weights->attention_post_norm = MakeNorm(Role::kAttentionPostNorm, std::nullopt, layer);
  weights->mlp_norm = MakeNorm(Role::kMlpNorm, Role::kMlpNormBias, layer);
  weights->mlp_post_norm = MakeNorm(Role::kMlpPostNorm, std::nullopt, layer);
  return absl::OkStatus();
}

absl::StatusOr<PackedMatrix> StageBuilder::MakeMatrix(Role role) {
  ASSIGN_OR_RETURN(const WeightItem* item, Need(role, -1));
  PackedMatrix matrix = PackedMatrix::Allocate(stream_, item->held, item->rows(),
                                               item->cut.columns.size(), item->lead());
  AddPiece(matrix, {{item, 0}}, -1);
  return matrix;
}

absl::StatusOr<Projection> StageBuilder::MakeProjection(int64_t layer,
                                                        const std::vector<Role>& roles,
                                                        const std::vector<Role>& bias_roles) {
  Projection projection;
  std::vector<const WeightItem*> items;
  for (Role role : roles) {
    ASSIGN_OR_RETURN(const WeightItem* item, Need(role, layer));
    items.push_back(item);
  }
  projection.columns = items[0]->cut.columns.size();
  for (size_t begin = 0; begin < items.size();) {
    const WeightItem* first = items[begin];
    std::vector<WeightPiece::Source> sources;
    int64_t rows = 0;
    for (; begin < items.size() && items[begin]->held == first->held; ++begin) {
      sources.push_back({items[begin], rows});
      rows += items[begin]->rows();
    }
    PackedMatrix matrix =
        PackedMatrix::Allocate(stream_, first->held, rows, projection.columns, first->lead());
    AddPiece(matrix, std::move(sources), layer);
    projection.rows += rows;
    projection.parts.push_back(std::move(matrix));
  }
  std::vector<WeightPiece::Source> biases;
  int64_t first_row = 0;
  for (size_t i = 0; i < bias_roles.size(); ++i) {
    const WeightItem* bias = Find(bias_roles[i], layer);
    if (bias != nullptr) biases.push_back({bias, first_row});
    first_row += items[i]->rows();
  }
  if (!biases.empty()) {
    projection.bias = MakeVector(std::move(biases), projection.rows, layer, /*plus_one=*/false);
  }
  return projection;
}

absl::StatusOr<LayerWeights> StageBuilder::MakeLayer(int64_t layer) {
  LayerWeights weights;
  RETURN_IF_ERROR(MakeLayerNorms(layer, &weights));
  ASSIGN_OR_RETURN(weights.qkv,
                   MakeProjection(layer, {Role::kQuery, Role::kKey, Role::kValue},
                                  {Role::kQueryBias, Role::kKeyBias, Role::kValueBias}));
  ASSIGN_OR_RETURN(weights.output,
                   MakeProjection(layer, {Role::kAttentionOutput}, {Role::kAttentionOutputBias}));
  const bool gated = checkpoint_.spec().gated_mlp;
  ASSIGN_OR_RETURN(weights.gate_up, gated ? MakeProjection(layer, {Role::kGate, Role::kUp},
                                                           {Role::kGateBias, Role::kUpBias})
                                          : MakeProjection(layer, {Role::kUp}, {Role::kUpBias}));
  ASSIGN_OR_RETURN(weights.down, MakeProjection(layer, {Role::kDown}, {Role::kDownBias}));
  return weights;
}

std::string StageBuilder::Dtypes() const {
  std::set<absl::string_view> names;
  for (const WeightItem& item : items_) {
    if (item.matrix()) names.insert(ToAbsl(DTypeName(item.held)));
  }
  return absl::StrJoin(names, "+");
}

absl::StatusOr<StageWeights> StageBuilder::Build() {
  const int64_t reserved = stream_.ReservedBytesLeft();
  StageWeights weights;
  weights.layers = layout_.layers;
  weights.dtypes = Dtypes();
  const bool tied = checkpoint_.spec().tied_embeddings;
  if (layout_.first_stage()) {
    ASSIGN_OR_RETURN(weights.embedding, MakeMatrix(Role::kTokenEmbedding));
    if (checkpoint_.spec().learned_positions) {
      ASSIGN_OR_RETURN(weights.positions, MakeMatrix(Role::kPositionEmbedding));
    }
    weights.embedding_norm = MakeNorm(Role::kEmbeddingNorm, Role::kEmbeddingNormBias, -1);
  }
  for (int64_t layer = layout_.layers.begin; layer < layout_.layers.end; ++layer) {
    ASSIGN_OR_RETURN(LayerWeights layer_weights, MakeLayer(layer));
    weights.layer_weights.push_back(std::move(layer_weights));
  }
  if (layout_.last_stage()) {
    RETURN_IF_ERROR(Need(Role::kFinalNorm, -1).status());
    weights.final_norm = MakeNorm(Role::kFinalNorm, Role::kFinalNormBias, -1);
    weights.head_is_embedding = tied && layout_.first_stage();
    if (!weights.head_is_embedding) {
      ASSIGN_OR_RETURN(weights.head, MakeMatrix(tied ? Role::kTokenEmbedding : Role::kLmHead));
    }
  }
  // An allocation that failed stays with the stream.
  RETURN_IF_ERROR(stream_.Synchronize());
  int64_t taken = 0;
  for (const WeightPiece& piece : stage_.pieces) taken += piece.bytes + DevicePadding(piece.bytes);
  stage_.together = reserved - stream_.ReservedBytesLeft() == taken;
  return weights;
}

}  // namespace

absl::StatusOr<StageWeights> LoadStageWeights(const Checkpoint& checkpoint,
                                              const RankLayout& layout, Stream& stream,
                                              const ByteProgress& progress, WeightFormat format,
                                              LoadTimes* times, const LoadLimits& limits) {
  ASSIGN_OR_RETURN(const std::vector<WeightItem> items, WeightItemsOf(checkpoint, layout, format));
  StageBuilder builder(checkpoint, layout, items, stream);
  ASSIGN_OR_RETURN(StageWeights weights, builder.Build());
  ASSIGN_OR_RETURN(const LoadTimes took,
                   LoadPieces(checkpoint, builder.pieces(), stream, progress, limits));
  if (times != nullptr) *times = took;
  return weights;
}

}  // namespace pergola
