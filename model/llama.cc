#include "model/llama.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/limits.h"
#include "base/status.h"
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
  return spec;
}

absl::StatusOr<RopeSpec> RopeFromGguf(const GgufMetadata& metadata, int64_t head_dim) {
  ASSIGN_OR_RETURN(const double theta,
                   metadata.Number("llama.rope.freq_base", kDefaultTheta, 1, 1e15));
  ASSIGN_OR_RETURN(const int64_t dims,
                   metadata.Int("llama.rope.dimension_count", head_dim, head_dim, head_dim));
  RETURN_IF_ERROR(CheckRotated(dims, metadata.file()));
  RopeSpec rope = PlainRope(dims, theta);
  ASSIGN_OR_RETURN(const double legacy, metadata.Number("llama.rope.scale_linear", 1, 1e-6, 1e6));
  ASSIGN_OR_RETURN(const double factor,
                   metadata.Number("llama.rope.scaling.factor", legacy, 1e-6, 1e6));
  const std::string fallback = legacy == 1 ? "none" : "linear";
  ASSIGN_OR_RETURN(const std::string type, metadata.String("llama.rope.scaling.type", fallback));
  if (type == "linear") {
    ScaleLinear(factor, &rope);
  } else if (type != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat(metadata.file(), ": llama.rope.scaling.type is \"", Printable(type),
                     "\", which is not supported; supported: none, linear"));
  }
  return rope;
}

absl::Status ReadGgufSizes(const GgufMetadata& metadata, ModelSpec* spec) {
  ASSIGN_OR_RETURN(spec->hidden,
                   metadata.Int("llama.embedding_length", std::nullopt, 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec->layers, metadata.Int("llama.block_count", std::nullopt, 1, kMaxLayers));
  ASSIGN_OR_RETURN(spec->heads,
                   metadata.Int("llama.attention.head_count", std::nullopt, 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec->kv_heads,
                   metadata.Int("llama.attention.head_count_kv", spec->heads, 1, spec->heads));
  ASSIGN_OR_RETURN(spec->head_dim, metadata.Int("llama.attention.key_length", 0, 1, kMaxHidden));
  if (spec->head_dim == 0) {
    if (spec->hidden % spec->heads != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(metadata.file(), ": llama.attention.head_count is ", spec->heads,
                       ", but must divide llama.embedding_length ", spec->hidden));
    }
    spec->head_dim = spec->hidden / spec->heads;
  }
  ASSIGN_OR_RETURN(
      const int64_t value_length,
      metadata.Int("llama.attention.value_length", spec->head_dim, spec->head_dim, spec->head_dim));
  (void)value_length;
  ASSIGN_OR_RETURN(spec->ffn, metadata.Int("llama.feed_forward_length", std::nullopt, 1,
                                           int64_t{8} * kMaxHidden));
  ASSIGN_OR_RETURN(spec->context_length,
                   metadata.Int("llama.context_length", std::nullopt, 1, INT32_MAX));
  const int64_t tokens = metadata.Count("tokenizer.ggml.tokens");
  const auto fallback = tokens > 0 ? std::optional<int64_t>(tokens) : std::nullopt;
  ASSIGN_OR_RETURN(spec->vocabulary, metadata.Int("llama.vocab_size", fallback, 1, kMaxVocabulary));
  return absl::OkStatus();
}

absl::StatusOr<ModelSpec> LlamaFromGguf(const GgufMetadata& metadata) {
  // Mixtral comes under the same architecture name.
  ASSIGN_OR_RETURN(const int64_t experts, metadata.Int("llama.expert_count", 0, 0, 0));
  (void)experts;
  ModelSpec spec;
  spec.architecture = "llama";
  RETURN_IF_ERROR(ReadGgufSizes(metadata, &spec));
  RETURN_IF_ERROR(CheckSpec(spec, metadata.file()));
  ASSIGN_OR_RETURN(const double epsilon,
                   metadata.Number("llama.attention.layer_norm_rms_epsilon", std::nullopt, 0, 1));
  spec.norm_epsilon = static_cast<float>(epsilon);
  ASSIGN_OR_RETURN(spec.rope, RopeFromGguf(metadata, spec.head_dim));
  spec.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim)));
  ASSIGN_OR_RETURN(spec.sliding_window,
                   metadata.Int("llama.attention.sliding_window", 0, 0, INT32_MAX));
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
// After "blk.N.".
constexpr RoleTensor kGgufTensors[] = {
    {Role::kTokenEmbedding, "token_embd.weight"},
    {Role::kAttentionNorm, "attn_norm.weight"},
    {Role::kQuery, "attn_q.weight"},
    {Role::kKey, "attn_k.weight"},
    {Role::kValue, "attn_v.weight"},
    {Role::kQueryBias, "attn_q.bias"},
    {Role::kKeyBias, "attn_k.bias"},
    {Role::kValueBias, "attn_v.bias"},
    {Role::kAttentionOutput, "attn_output.weight"},
    {Role::kAttentionOutputBias, "attn_output.bias"},
    {Role::kMlpNorm, "ffn_norm.weight"},
    {Role::kGate, "ffn_gate.weight"},
    {Role::kUp, "ffn_up.weight"},
    {Role::kDown, "ffn_down.weight"},
    {Role::kGateBias, "ffn_gate.bias"},
    {Role::kUpBias, "ffn_up.bias"},
    {Role::kDownBias, "ffn_down.bias"},
    {Role::kFinalNorm, "output_norm.weight"},
    {Role::kLmHead, "output.weight"},
};

// Llama 3's GGUF files carry its frequency scaling as divisors.
absl::Status ApplyRopeFactors(const TensorTable& table, RopeSpec* rope) {
  const std::string name = "rope_freqs.weight";
  if (!table.Contains(name)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const TensorInfo* tensor, table.Require(name, {rope->dims / 2}));
  std::vector<uint8_t> raw(static_cast<size_t>(tensor->bytes));
  RETURN_IF_ERROR(table.Read(*tensor, 0, absl::MakeSpan(raw)));
  std::vector<float> factors(rope->inverse_frequency.size());
  DecodeToF32(tensor->dtype, raw.data(), static_cast<int64_t>(factors.size()), factors.data());
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!std::isfinite(factors[i]) || factors[i] <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" holds ", factors[i],
                                                     " at ", i, "; factors must be positive"));
    }
    rope->inverse_frequency[i] /= factors[i];
  }
  return absl::OkStatus();
}

std::string GgufName(Role role, int64_t layer) {
  const auto* found = std::find_if(std::begin(kGgufTensors), std::end(kGgufTensors),
                                   [&](const RoleTensor& one) { return one.role == role; });
  PERGOLA_CHECK(found != std::end(kGgufTensors));
  return layer < 0 ? std::string(found->name) : absl::StrCat("blk.", layer, ".", found->name);
}

// Metadata does not tell about biases, tensors do. One bias anywhere means that its kind must be in
// every layer: a bias that nothing adds would be silently wrong.
void DetectBiases(const TensorTable& table, ModelSpec* spec) {
  const auto any = [&](std::initializer_list<Role> roles) {
    for (int64_t layer = 0; layer < spec->layers; ++layer) {
      for (const Role role : roles) {
        if (table.Contains(GgufName(role, layer))) return true;
      }
    }
    return false;
  };
  spec->qkv_bias = any({Role::kQueryBias, Role::kKeyBias, Role::kValueBias});
  spec->output_bias = any({Role::kAttentionOutputBias});
  spec->mlp_bias = any({Role::kGateBias, Role::kUpBias, Role::kDownBias});
}

absl::Status BindGguf(const TensorTable& table, ModelSpec* spec,
                      std::vector<WeightBinding>* weights) {
  spec->tied_embeddings = !table.Contains("output.weight");
  DetectBiases(table, spec);
  RETURN_IF_ERROR(ApplyRopeFactors(table, &spec->rope));
  const auto place = [](Role role, int64_t layer) {
    const bool rotated = role == Role::kQuery || role == Role::kKey || role == Role::kQueryBias ||
                         role == Role::kKeyBias;
    WeightPlacement placement;
    placement.tensor = GgufName(role, layer);
    if (rotated) placement.row_order = RowOrder::kGgufInterleavedRope;
    return placement;
  };
  return BindWeights(table, *spec, place, weights);
}

absl::Status BindLlama(FileFormat format, const TensorTable& table, ModelSpec* spec,
                       std::vector<WeightBinding>* weights) {
  return format == FileFormat::kGguf ? BindGguf(table, spec, weights)
                                     : BindLlamaHf(format, table, spec, weights);
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
