#include "model/model_spec.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace pergola {
namespace {

// Which dimensions a weight has.
enum class Dims : uint8_t {
  kHidden,
  kHeadDim,
  kQuery,
  kKv,
  kFfn,
  kVocabularyByHidden,
  kContextByHidden,
  kQueryByHidden,
  kKvByHidden,
  kHiddenByQuery,
  kFfnByHidden,
  kHiddenByFfn,
};

struct RoleTraits {
  Role role;
  Dims dims;
  Split split;
  WeightPlace place;  // of an embedding that is not tied
  const char* name;
};

constexpr WeightPlace kFirst = WeightPlace::kFirstStage;
constexpr WeightPlace kLast = WeightPlace::kLastStage;
constexpr WeightPlace kLayer = WeightPlace::kLayer;
constexpr Split kWhole = Split::kReplicated;

constexpr RoleTraits kRoles[] = {
    {Role::kTokenEmbedding, Dims::kVocabularyByHidden, Split::kVocabularyRows, kFirst, "embedding"},
    {Role::kPositionEmbedding, Dims::kContextByHidden, Split::kPositionRows, kFirst, "positions"},
    {Role::kEmbeddingNorm, Dims::kHidden, kWhole, kFirst, "embedding.norm"},
    {Role::kEmbeddingNormBias, Dims::kHidden, kWhole, kFirst, "embedding.norm.bias"},
    {Role::kAttentionNorm, Dims::kHidden, kWhole, kLayer, "attention.norm"},
    {Role::kAttentionNormBias, Dims::kHidden, kWhole, kLayer, "attention.norm.bias"},
    {Role::kQuery, Dims::kQueryByHidden, Split::kQueryHeadRows, kLayer, "attention.query"},
    {Role::kKey, Dims::kKvByHidden, Split::kKvHeadRows, kLayer, "attention.key"},
    {Role::kValue, Dims::kKvByHidden, Split::kKvHeadRows, kLayer, "attention.value"},
    {Role::kQueryBias, Dims::kQuery, Split::kQueryHeadRows, kLayer, "attention.query.bias"},
    {Role::kKeyBias, Dims::kKv, Split::kKvHeadRows, kLayer, "attention.key.bias"},
    {Role::kValueBias, Dims::kKv, Split::kKvHeadRows, kLayer, "attention.value.bias"},
    {Role::kQueryNorm, Dims::kHeadDim, kWhole, kLayer, "attention.query.norm"},
    {Role::kKeyNorm, Dims::kHeadDim, kWhole, kLayer, "attention.key.norm"},
    {Role::kAttentionOutput, Dims::kHiddenByQuery, Split::kQueryHeadColumns, kLayer,
     "attention.output"},
    {Role::kAttentionOutputBias, Dims::kHidden, Split::kFirstRank, kLayer, "attention.output.bias"},
    {Role::kAttentionPostNorm, Dims::kHidden, kWhole, kLayer, "attention.post_norm"},
    {Role::kMlpNorm, Dims::kHidden, kWhole, kLayer, "mlp.norm"},
    {Role::kMlpNormBias, Dims::kHidden, kWhole, kLayer, "mlp.norm.bias"},
    {Role::kGate, Dims::kFfnByHidden, Split::kFfnRows, kLayer, "mlp.gate"},
    {Role::kUp, Dims::kFfnByHidden, Split::kFfnRows, kLayer, "mlp.up"},
    {Role::kGateBias, Dims::kFfn, Split::kFfnRows, kLayer, "mlp.gate.bias"},
    {Role::kUpBias, Dims::kFfn, Split::kFfnRows, kLayer, "mlp.up.bias"},
    {Role::kDown, Dims::kHiddenByFfn, Split::kFfnColumns, kLayer, "mlp.down"},
    {Role::kDownBias, Dims::kHidden, Split::kFirstRank, kLayer, "mlp.down.bias"},
    {Role::kMlpPostNorm, Dims::kHidden, kWhole, kLayer, "mlp.post_norm"},
    {Role::kFinalNorm, Dims::kHidden, kWhole, kLast, "final.norm"},
    {Role::kFinalNormBias, Dims::kHidden, kWhole, kLast, "final.norm.bias"},
    {Role::kLmHead, Dims::kVocabularyByHidden, Split::kVocabularyRows, kLast, "lm_head"},
};

const RoleTraits& TraitsOf(Role role) {
  const auto index = static_cast<size_t>(role);
  PERGOLA_CHECK(index < std::size(kRoles) && kRoles[index].role == role);
  return kRoles[index];
}

}  // namespace

Split SplitOf(Role role) {
  return TraitsOf(role).split;
}

WeightPlace PlaceOf(const ModelSpec& spec, Role role) {
  const bool both = role == Role::kTokenEmbedding && spec.tied_embeddings;
  return both ? WeightPlace::kBothEnds : TraitsOf(role).place;
}

std::string RoleName(Role role, int64_t layer) {
  if (layer < 0) return TraitsOf(role).name;
  return absl::StrCat("layers.", layer, ".", TraitsOf(role).name);
}

bool IsNorm(Role role) {
  switch (role) {
    case Role::kEmbeddingNorm:
    case Role::kAttentionNorm:
    case Role::kQueryNorm:
    case Role::kKeyNorm:
    case Role::kAttentionPostNorm:
    case Role::kMlpNorm:
    case Role::kMlpPostNorm:
    case Role::kFinalNorm:
      return true;
    default:
      return false;
  }
}

std::vector<int64_t> ShapeOf(const ModelSpec& spec, Role role) {
  const int64_t q = spec.heads * spec.head_dim;
  const int64_t kv = spec.kv_heads * spec.head_dim;
  switch (TraitsOf(role).dims) {
    case Dims::kHidden:
      return {spec.hidden};
    case Dims::kHeadDim:
      return {spec.head_dim};
    case Dims::kQuery:
      return {q};
    case Dims::kKv:
      return {kv};
    case Dims::kFfn:
      return {spec.ffn};
    case Dims::kVocabularyByHidden:
      return {spec.vocabulary, spec.hidden};
    case Dims::kContextByHidden:
      return {spec.context_length, spec.hidden};
    case Dims::kQueryByHidden:
      return {q, spec.hidden};
    case Dims::kKvByHidden:
      return {kv, spec.hidden};
    case Dims::kHiddenByQuery:
      return {spec.hidden, q};
    case Dims::kFfnByHidden:
      return {spec.ffn, spec.hidden};
    case Dims::kHiddenByFfn:
      return {spec.hidden, spec.ffn};
  }
  PERGOLA_CHECK(false);
}

std::vector<Role> LayerRoles(const ModelSpec& spec) {
  std::vector<Role> roles;
  const auto add = [&](bool has, std::initializer_list<Role> more) {
    if (has) roles.insert(roles.end(), more);
  };
  const bool layer_norm = spec.norm == NormKind::kLayer;
  const bool gated = spec.gated_mlp;
  add(true, {Role::kAttentionNorm});
  add(layer_norm, {Role::kAttentionNormBias});
  add(true, {Role::kQuery, Role::kKey, Role::kValue});
  add(spec.qkv_bias, {Role::kQueryBias, Role::kKeyBias, Role::kValueBias});
  add(spec.head_norms, {Role::kQueryNorm, Role::kKeyNorm});
  add(true, {Role::kAttentionOutput});
  add(spec.output_bias, {Role::kAttentionOutputBias});
  add(spec.post_norms, {Role::kAttentionPostNorm});
  add(true, {Role::kMlpNorm});
  add(layer_norm, {Role::kMlpNormBias});
  add(gated, {Role::kGate});
  add(true, {Role::kUp});
  add(spec.mlp_bias && gated, {Role::kGateBias});
  add(spec.mlp_bias, {Role::kUpBias});
  add(true, {Role::kDown});
  add(spec.mlp_bias, {Role::kDownBias});
  add(spec.post_norms, {Role::kMlpPostNorm});
  return roles;
}

std::vector<std::pair<Role, int64_t>> ModelRoles(const ModelSpec& spec) {
  const bool layer_norm = spec.norm == NormKind::kLayer;
  std::vector<std::pair<Role, int64_t>> roles = {{Role::kTokenEmbedding, -1}};
  if (spec.learned_positions) roles.emplace_back(Role::kPositionEmbedding, -1);
  if (spec.embedding_norm) roles.emplace_back(Role::kEmbeddingNorm, -1);
  if (spec.embedding_norm && layer_norm) roles.emplace_back(Role::kEmbeddingNormBias, -1);
  const std::vector<Role> in_layer = LayerRoles(spec);
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    for (const Role role : in_layer) roles.emplace_back(role, layer);
  }
  roles.emplace_back(Role::kFinalNorm, -1);
  if (layer_norm) roles.emplace_back(Role::kFinalNormBias, -1);
  if (!spec.tied_embeddings) roles.emplace_back(Role::kLmHead, -1);
  return roles;
}

}  // namespace pergola
