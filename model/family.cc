#include "model/family.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_join.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/status.h"
#include "model/bloom.h"
#include "model/gemma3.h"
#include "model/gpt2.h"
#include "model/gpt_bigcode.h"
#include "model/llama.h"
#include "model/qwen.h"

namespace pergola {
namespace {

// Every family, in the order of messages.
const Family* const kFamilies[] = {&kLlamaFamily,      &kMistralFamily, &kBloomFamily,
                                   &kGptBigCodeFamily, &kGpt2Family,    &kQwen2Family,
                                   &kQwen3Family,      &kGemma3Family};

constexpr const char* kLmHead = "lm_head.weight";

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

// Whether two tensors hold the same bytes; stops at the first difference.
absl::StatusOr<bool> SameBytes(const TensorTable& table, const TensorInfo& a, const TensorInfo& b) {
  if (a.dtype != b.dtype || a.bytes != b.bytes) return false;
  constexpr int64_t kChunk = 1 << 20;
  std::vector<uint8_t> left(kChunk);
  std::vector<uint8_t> right(kChunk);
  for (int64_t at = 0; at < a.bytes; at += kChunk) {
    const auto n = static_cast<size_t>(std::min(kChunk, a.bytes - at));
    RETURN_IF_ERROR(table.Read(a, at, absl::MakeSpan(left.data(), n)));
    RETURN_IF_ERROR(table.Read(b, at, absl::MakeSpan(right.data(), n)));
    if (std::memcmp(left.data(), right.data(), n) != 0) return false;
  }
  return true;
}

// The stored head counts only where it differs: transformers 5 then unties.
absl::Status DecideTied(const TensorTable& table, const std::string& embedding, ModelSpec* spec) {
  if (!spec->tied_embeddings || !table.Contains(kLmHead)) return absl::OkStatus();
  const std::vector<int64_t> shape = ShapeOf(*spec, Role::kLmHead);
  ASSIGN_OR_RETURN(const TensorInfo* a, table.Require(embedding, shape));
  ASSIGN_OR_RETURN(const TensorInfo* b, table.Require(kLmHead, shape));
  ASSIGN_OR_RETURN(spec->tied_embeddings, SameBytes(table, *a, *b));
  return absl::OkStatus();
}

// 0, 1, 2 for q, k and v, weight or bias; -1 for any other role.
int QkvPart(Role role) {
  switch (role) {
    case Role::kQuery:
    case Role::kQueryBias:
      return 0;
    case Role::kKey:
    case Role::kKeyBias:
      return 1;
    case Role::kValue:
    case Role::kValueBias:
      return 2;
    default:
      return -1;
  }
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

absl::Status BindWeights(const TensorTable& table, const ModelSpec& spec, const PlaceWeight& place,
                         std::vector<WeightBinding>* weights) {
  for (const auto& [role, layer] : ModelRoles(spec)) {
    const WeightPlacement placement = place(role, layer);
    WeightBinding binding;
    binding.role = role;
    binding.layer = layer;
    binding.tensor = placement.tensor;
    binding.shape = ShapeOf(spec, role);
    binding.row_order = placement.row_order;
    binding.rows = placement.rows;
    binding.transposed = placement.transposed && binding.shape.size() == 2;
    std::vector<int64_t> shape = binding.shape;
    if (placement.tensor_rows > 0) shape[0] = placement.tensor_rows;
    if (binding.transposed) std::swap(shape[0], shape[1]);
    RETURN_IF_ERROR(table.Require(binding.tensor, shape).status());
    weights->push_back(std::move(binding));
  }
  return absl::OkStatus();
}

absl::Status BindHfWeights(const TensorTable& table, const HfNames& names,
                           const std::function<void(Role, WeightPlacement*)>& adjust,
                           ModelSpec* spec, std::vector<WeightBinding>* weights) {
  const auto name_of = [&](Role role) -> const char* {
    if (role == Role::kLmHead) return kLmHead;
    for (const RoleTensor& tensor : names.tensors) {
      if (tensor.role == role) return tensor.name;
    }
    PERGOLA_CHECK_MSG(false, "no name for " + RoleName(role, -1));
  };
  const std::string embedding = name_of(Role::kTokenEmbedding);
  const bool bare = !table.Contains(names.prefix + embedding) && table.Contains(embedding);
  const std::string prefix = bare ? "" : names.prefix;
  RETURN_IF_ERROR(DecideTied(table, prefix + embedding, spec));
  const auto place = [&](Role role, int64_t layer) {
    WeightPlacement placement;
    const char* name = name_of(role);
    if (role == Role::kLmHead) {
      placement.tensor = name;
    } else if (layer < 0) {
      placement.tensor = absl::StrCat(prefix, name);
    } else {
      placement.tensor = absl::StrCat(prefix, names.layers, layer, ".", name);
    }
    if (adjust) adjust(role, &placement);
    return placement;
  };
  return BindWeights(table, *spec, place, weights);
}

void PlaceInterleavedQkv(const ModelSpec& spec, Role role, WeightPlacement* placement) {
  const int part = QkvPart(role);
  if (part < 0) return;
  placement->rows = {part * spec.head_dim, spec.head_dim, 3 * spec.head_dim};
  placement->tensor_rows = 3 * spec.heads * spec.head_dim;
}

void PlaceStackedQkv(const ModelSpec& spec, Role role, WeightPlacement* placement) {
  const int part = QkvPart(role);
  if (part < 0) return;
  const int64_t firsts[] = {0, spec.heads, spec.heads + spec.kv_heads};
  placement->rows.first = firsts[part] * spec.head_dim;
  placement->tensor_rows = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
}

absl::StatusOr<int64_t> ReadSize(const JsonObject& config, const SizeKey& size) {
  const bool both = config.Has(size.key) && config.Has(size.alias);
  if (both && *config.Find(size.key) != *config.Find(size.alias)) {
    return config.Wrong(size.alias, absl::StrCat("equal to ", size.key, ", its other name"));
  }
  const char* key = config.Has(size.key) ? size.key : size.alias;
  return config.Int(key, size.fallback, 1, size.max);
}

absl::StatusOr<Activation> ReadActivation(const JsonObject& config, std::string_view key,
                                          std::string_view fallback) {
  static constexpr std::pair<std::string_view, Activation> kActivations[] = {
      {"silu", Activation::kSilu},
      {"swish", Activation::kSilu},
      {"gelu", Activation::kGeluErf},
      {"gelu_python", Activation::kGeluErf},
      {"gelu_new", Activation::kGeluTanh},
      {"gelu_fast", Activation::kGeluTanh},
      {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"gelu_python_tanh", Activation::kGeluTanh}};
  ASSIGN_OR_RETURN(const std::string name, config.String(key, fallback));
  for (const auto& [known, activation] : kActivations) {
    if (name == known) return activation;
  }
  return config.Wrong(key,
                      "silu, swish, gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh or "
                      "gelu_python_tanh");
}

absl::Status RefuseUnsupportedHf(const JsonObject& config) {
  if (config.Has("quantization_config")) {
    return config.Wrong("quantization_config", "absent: quantised safetensors are not supported");
  }
  ASSIGN_OR_RETURN(const bool cross, config.Bool("add_cross_attention", false));
  if (cross) return config.Wrong("add_cross_attention", "false");
  return absl::OkStatus();
}

absl::Status CheckSpec(const ModelSpec& spec, std::string_view where) {
  RETURN_IF_ERROR(CheckRange(where, "layers", spec.layers, kMaxLayers));
  RETURN_IF_ERROR(CheckRange(where, "hidden values", spec.hidden, kMaxHidden));
  RETURN_IF_ERROR(CheckRange(where, "heads", spec.heads, kMaxHidden));
  RETURN_IF_ERROR(CheckRange(where, "KV heads", spec.kv_heads, spec.heads));
  RETURN_IF_ERROR(CheckRange(where, "values per head", spec.head_dim, kMaxHeadDim));
  RETURN_IF_ERROR(CheckRange(where, "FFN values", spec.ffn, int64_t{8} * kMaxHidden));
  RETURN_IF_ERROR(CheckRange(where, "vocabulary entries", spec.vocabulary, kMaxVocabulary));
  RETURN_IF_ERROR(CheckRange(where, "context positions", spec.context_length, INT32_MAX));
  if (spec.heads % spec.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(ToAbsl(where), ": the model has ", spec.heads,
                                                   " heads, which ", spec.kv_heads,
                                                   " KV heads do not divide"));
  }
  return absl::OkStatus();
}

}  // namespace pergola
