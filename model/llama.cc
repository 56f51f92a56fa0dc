#include "model/llama.h"

#include <cmath>

#include "base/limits.h"
#include "base/status.h"
#include "model/gguf_model.h"
#include "model/rope.h"

namespace pergola {
namespace {

constexpr double kDefaultTheta = 10000;

LlamaDefaults DefaultsOfLlama() {
  LlamaDefaults defaults;
  defaults.ffn = 11008;
  defaults.context_length = 2048;
  return defaults;
}

LlamaDefaults DefaultsOfMistral() {
  LlamaDefaults defaults;
  defaults.ffn = 14336;
  defaults.kv_heads = 8;
  defaults.context_length = 131072;
  return defaults;
}

absl::StatusOr<ModelSpec> LlamaFromHf(const JsonObject& config) {
  ASSIGN_OR_RETURN(ModelSpec spec, LlamaSpecFromHf(config, DefaultsOfLlama()));
  ASSIGN_OR_RETURN(spec.qkv_bias, config.Bool("attention_bias", false));
  spec.output_bias = spec.qkv_bias;
  ASSIGN_OR_RETURN(spec.mlp_bias, config.Bool("mlp_bias", false));
  return spec;
}

absl::StatusOr<ModelSpec> MistralFromHf(const JsonObject& config) {
  ASSIGN_OR_RETURN(ModelSpec spec, LlamaSpecFromHf(config, DefaultsOfMistral()));
  // Null means no window; only an absent key means the default.
  const int64_t fallback = config.Find("sliding_window") != nullptr ? 0 : 4096;
  ASSIGN_OR_RETURN(spec.sliding_window, config.Int("sliding_window", fallback, 1, INT32_MAX));
  spec.architecture = "mistral";
  return spec;
}

absl::StatusOr<ModelSpec> LlamaFromGguf(const GgufMetadata& metadata) {
  const GgufKeys keys(metadata, "llama");
  ASSIGN_OR_RETURN(ModelSpec spec, SpecFromGguf(keys, NormKind::kRms));
  spec.architecture = "llama";
  RETURN_IF_ERROR(ReadGgufRope(keys, &spec));
  ASSIGN_OR_RETURN(spec.sliding_window, keys.Int("attention.sliding_window", 0, 0, INT32_MAX));
  return spec;
}

// Of the whole family: which of them a model has, its spec says.
constexpr RoleTensor kHfTensors[] = {
    {Role::kTokenEmbedding, "embed_tokens.weight"},
    {Role::kAttentionNorm, "input_layernorm.weight"},
    {Role::kQuery, "self_attn.q_proj.weight"},
    {Role::kKey, "self_attn.k_proj.weight"},
    {Role::kValue, "self_attn.v_proj.weight"},
    {Role::kQueryBias, "self_attn.q_proj.bias"},
    {Role::kKeyBias, "self_attn.k_proj.bias"},
    {Role::kValueBias, "self_attn.v_proj.bias"},
    {Role::kQueryNorm, "self_attn.q_norm.weight"},
    {Role::kKeyNorm, "self_attn.k_norm.weight"},
    {Role::kAttentionOutput, "self_attn.o_proj.weight"},
    {Role::kAttentionOutputBias, "self_attn.o_proj.bias"},
    {Role::kMlpNorm, "post_attention_layernorm.weight"},
    {Role::kGate, "mlp.gate_proj.weight"},
    {Role::kUp, "mlp.up_proj.weight"},
    {Role::kDown, "mlp.down_proj.weight"},
    {Role::kGateBias, "mlp.gate_proj.bias"},
    {Role::kUpBias, "mlp.up_proj.bias"},
    {Role::kDownBias, "mlp.down_proj.bias"},
    {Role::kFinalNorm, "norm.weight"},
};
absl::Status BindLlama(FileFormat format, const TensorTable& table, ModelSpec* spec,
                       std::vector<WeightBinding>* weights) {
  if (format == FileFormat::kHuggingFace) return BindLlamaHf(format, table, spec, weights);
  GgufTensors tensors;
  tensors.interleaved_rope = tensors.optional_biases = true;
  return BindGguf(table, tensors, spec, weights);
}

absl::Status ReadHeads(const JsonObject& config, const LlamaDefaults& defaults, ModelSpec* spec) {
  ASSIGN_OR_RETURN(spec->heads, config.Int("num_attention_heads", defaults.heads, 1, kMaxHidden));
  // An explicit null means as many as heads, also where the class default is another number.
  const bool stated = config.Find("num_key_value_heads") != nullptr;
  const int64_t kv_default = defaults.kv_heads == 0 || stated ? spec->heads : defaults.kv_heads;
  ASSIGN_OR_RETURN(spec->kv_heads, config.Int("num_key_value_heads", kv_default, 1, spec->heads));
  ASSIGN_OR_RETURN(spec->head_dim, config.Int("head_dim", defaults.head_dim, 1, kMaxHidden));
  if (spec->head_dim == 0) {
    if (spec->hidden % spec->heads != 0) {
      return config.Wrong("num_attention_heads",
                          absl::StrCat("a divisor of hidden_size ", spec->hidden));
    }
    spec->head_dim = spec->hidden / spec->heads;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelSpec> LlamaSpecFromHf(const JsonObject& config, const LlamaDefaults& defaults) {
  RETURN_IF_ERROR(RefuseUnsupportedHf(config));
  ModelSpec spec;
  spec.architecture = "llama";
  ASSIGN_OR_RETURN(spec.hidden, config.Int("hidden_size", defaults.hidden, 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec.layers, config.Int("num_hidden_layers", defaults.layers, 1, kMaxLayers));
  RETURN_IF_ERROR(ReadHeads(config, defaults, &spec));
  ASSIGN_OR_RETURN(spec.ffn,
                   config.Int("intermediate_size", defaults.ffn, 1, int64_t{8} * kMaxHidden));
  ASSIGN_OR_RETURN(spec.vocabulary,
                   config.Int("vocab_size", defaults.vocabulary, 1, kMaxVocabulary));
  ASSIGN_OR_RETURN(spec.context_length,
                   config.Int("max_position_embeddings", defaults.context_length, 1, INT32_MAX));
  RETURN_IF_ERROR(CheckSpec(spec, config.where()));
  ASSIGN_OR_RETURN(spec.activation,
                   ReadActivation(config, defaults.activation_key, defaults.activation));
  ASSIGN_OR_RETURN(const double epsilon, config.Number("rms_norm_eps", 1e-6, 0, 1));
  spec.norm_epsilon = static_cast<float>(epsilon);
  if (defaults.one_rope) {
    ASSIGN_OR_RETURN(spec.rope,
                     RopeFromHf(config, spec.head_dim, spec.context_length, kDefaultTheta));
    // Model cards turn yarn on and leave max_position_embeddings at the original length.
    spec.context_length = std::max(spec.context_length, spec.rope.made_for);
  }
  spec.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim)));
  ASSIGN_OR_RETURN(spec.tied_embeddings, config.Bool("tie_word_embeddings", defaults.tied));
  return spec;
}

absl::Status ReadLayerTypes(const JsonObject& config,
                            const std::function<bool(int64_t layer)>& windowed, ModelSpec* spec) {
  const nlohmann::json* types = config.Has("layer_types") ? config.Find("layer_types") : nullptr;
  const std::string wanted = absl::StrCat("an array of ", spec->layers,
                                          " strings, each full_attention or sliding_attention");
  if (types != nullptr &&
      (!types->is_array() || static_cast<int64_t>(types->size()) != spec->layers)) {
    return config.Wrong("layer_types", wanted);
  }
  for (int64_t layer = 0; layer < spec->layers; ++layer) {
    bool local = types == nullptr && windowed(layer);
    if (types != nullptr) {
      const nlohmann::json& type = (*types)[static_cast<size_t>(layer)];
      local = type == "sliding_attention";
      if (!local && type != "full_attention") return config.Wrong("layer_types", wanted);
      if (local && spec->sliding_window == 0) {
        return config.Wrong("layer_types", "full_attention alone: there is no sliding_window");
      }
    }
    spec->windowed_layers.push_back(local ? 1 : 0);
  }
  return absl::OkStatus();
}

absl::Status BindLlamaHf(FileFormat /*format*/, const TensorTable& table, ModelSpec* spec,
                         std::vector<WeightBinding>* weights) {
  return BindHfWeights(table, {"model.", "layers.", kHfTensors}, nullptr, spec, weights);
}

const Family kLlamaFamily = {"llama", "llama", 1, 2, LlamaFromHf, LlamaFromGguf, BindLlama};
const Family kMistralFamily = {"mistral", "", 1, 2, MistralFromHf, nullptr, BindLlama};

}  // namespace pergola
