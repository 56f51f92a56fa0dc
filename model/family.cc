#include "model/family.h"

#include "absl/strings/str_join.h"
#include "base/limits.h"
#include "base/status.h"
#include "model/llama.h"

namespace pergola {
namespace {

// Every family, in the order of messages.
const Family* const kFamilies[] = {&kLlamaFamily, &kMistralFamily};

absl::Status CheckRange(std::string_view where, const char* what, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(where), ": the model has ", value, " ",
                                                 what, ", but must have 1 to ", max));
}

absl::StatusOr<const Family*> FindBy(std::string_view Family::*field, const std::string& value,
                                     const std::string& where) {
  std::vector<std::string> known;
  for (const Family* family : kFamilies) {
    const std::string_view name = family->*field;
    if (name.empty()) continue;
    if (name == value) return family;
    known.emplace_back(name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(where, " is \"", Printable(value),
                   "\", which is not supported; supported: ", absl::StrJoin(known, ", ")));
}

}  // namespace

absl::StatusOr<const Family*> FindHfFamily(const JsonObject& config) {
  ASSIGN_OR_RETURN(const std::string type, config.String("model_type", ""));
  return FindBy(&Family::hf_model_type, type, config.where() + ": model_type");
}

absl::StatusOr<const Family*> FindGgufFamily(const GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(const std::string name, metadata.String("general.architecture", std::nullopt));
  return FindBy(&Family::gguf_architecture, name, metadata.file() + ": general.architecture");
}

absl::Status BindWeights(const TensorTable& table, const ModelSpec& spec, const WeightNames& names,
                         std::vector<WeightBinding>* weights) {
  const auto bind = [&](Role role, int64_t layer) -> absl::Status {
    WeightBinding binding{role, layer, names.name(role, layer), ShapeOf(spec, role),
                          names.row_order(role)};
    ASSIGN_OR_RETURN(const TensorInfo* tensor, table.Require(binding.tensor, binding.shape));
    (void)tensor;
    weights->push_back(std::move(binding));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(bind(Role::kTokenEmbedding, -1));
  const std::vector<Role> roles = LayerRoles(spec);
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    for (const Role role : roles) RETURN_IF_ERROR(bind(role, layer));
  }
  RETURN_IF_ERROR(bind(Role::kFinalNorm, -1));
  if (!spec.tied_embeddings) RETURN_IF_ERROR(bind(Role::kLmHead, -1));
  return absl::OkStatus();
}

absl::Status CheckSpec(const ModelSpec& spec, std::string_view where) {
  RETURN_IF_ERROR(CheckRange(where, "layers", spec.layers, kMaxLayers));
  RETURN_IF_ERROR(CheckRange(where, "hidden values", spec.hidden, kMaxHidden));
  RETURN_IF_ERROR(CheckRange(where, "heads", spec.heads, kMaxHidden));
  RETURN_IF_ERROR(CheckRange(where, "KV heads", spec.kv_heads, spec.heads));
  RETURN_IF_ERROR(CheckRange(where, "values per head", spec.head_dim, 4096));
  RETURN_IF_ERROR(CheckRange(where, "FFN values", spec.ffn, int64_t{8} * kMaxHidden));
  RETURN_IF_ERROR(CheckRange(where, "vocabulary entries", spec.vocabulary, kMaxVocabulary));
  RETURN_IF_ERROR(CheckRange(where, "context positions", spec.context_length, INT32_MAX));
  if (spec.heads % spec.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(where), ": the model has ", spec.heads,
                                                   " heads, which ", spec.kv_heads,
                                                   " KV heads do not divide"));
  }
  if (spec.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(where), ": a head has ", spec.head_dim,
                                                   " values; rotary pairs need an even number"));
  }
  return absl::OkStatus();
}

}  // namespace pergola
