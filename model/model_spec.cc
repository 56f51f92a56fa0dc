#include "model/model_spec.h"

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace pergola {
namespace {

struct RoleTraits {
  Role role;
  Split split;
  const char* name;
};

constexpr RoleTraits kRoles[] = {
    {Role::kTokenEmbedding, Split::kVocabularyRows, "embedding"},
    {Role::kAttentionNorm, Split::kReplicated, "attention.norm"},
    {Role::kQuery, Split::kQueryHeadRows, "attention.query"},
    {Role::kKey, Split::kKvHeadRows, "attention.key"},
    {Role::kValue, Split::kKvHeadRows, "attention.value"},
    {Role::kQueryBias, Split::kQueryHeadRows, "attention.query.bias"},
    {Role::kKeyBias, Split::kKvHeadRows, "attention.key.bias"},
    {Role::kValueBias, Split::kKvHeadRows, "attention.value.bias"},
    {Role::kAttentionOutput, Split::kQueryHeadColumns, "attention.output"},
    {Role::kAttentionOutputBias, Split::kReplicated, "attention.output.bias"},
    {Role::kMlpNorm, Split::kReplicated, "mlp.norm"},
    {Role::kGate, Split::kFfnRows, "mlp.gate"},
    {Role::kUp, Split::kFfnRows, "mlp.up"},
    {Role::kDown, Split::kFfnColumns, "mlp.down"},
    {Role::kGateBias, Split::kFfnRows, "mlp.gate.bias"},
    {Role::kUpBias, Split::kFfnRows, "mlp.up.bias"},
    {Role::kDownBias, Split::kReplicated, "mlp.down.bias"},
    {Role::kFinalNorm, Split::kReplicated, "final.norm"},
    {Role::kLmHead, Split::kVocabularyRows, "lm_head"},
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

std::string RoleName(Role role, int64_t layer) {
  if (layer < 0) return TraitsOf(role).name;
  return absl::StrCat("layers.", layer, ".", TraitsOf(role).name);
}

std::vector<int64_t> ShapeOf(const ModelSpec& spec, Role role) {
  const int64_t q = spec.heads * spec.head_dim;
  const int64_t kv = spec.kv_heads * spec.head_dim;
  switch (role) {
    case Role::kTokenEmbedding:
    case Role::kLmHead:
      return {spec.vocabulary, spec.hidden};
    case Role::kAttentionNorm:
    case Role::kMlpNorm:
    case Role::kFinalNorm:
    case Role::kAttentionOutputBias:
    case Role::kDownBias:
      return {spec.hidden};
    case Role::kQuery:
      return {q, spec.hidden};
    case Role::kKey:
    case Role::kValue:
      return {kv, spec.hidden};
    case Role::kQueryBias:
      return {q};
    case Role::kKeyBias:
    case Role::kValueBias:
      return {kv};
    case Role::kAttentionOutput:
      return {spec.hidden, q};
    case Role::kGate:
    case Role::kUp:
      return {spec.ffn, spec.hidden};
    case Role::kDown:
      return {spec.hidden, spec.ffn};
    case Role::kGateBias:
    case Role::kUpBias:
      return {spec.ffn};
  }
  PERGOLA_CHECK(false);
}

std::vector<Role> LayerRoles(const ModelSpec& spec) {
  std::vector<Role> roles = {Role::kAttentionNorm, Role::kQuery, Role::kKey, Role::kValue};
  if (spec.qkv_bias) {
    roles.insert(roles.end(), {Role::kQueryBias, Role::kKeyBias, Role::kValueBias});
  }
  roles.push_back(Role::kAttentionOutput);
  if (spec.output_bias) roles.push_back(Role::kAttentionOutputBias);
  roles.insert(roles.end(), {Role::kMlpNorm, Role::kGate, Role::kUp, Role::kDown});
  if (spec.mlp_bias) {
    roles.insert(roles.end(), {Role::kGateBias, Role::kUpBias, Role::kDownBias});
  }
  return roles;
}

}  // namespace pergola
