#include "model/gemma3.h"

#include <cmath>

#include "base/status.h"
#include "model/llama.h"
#include "model/rope.h"

namespace pergola {
namespace {

constexpr double kGlobalTheta = 1e6;
constexpr double kLocalTheta = 1e4;

constexpr RoleTensor kTensors[] = {
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
    {Role::kAttentionPostNorm, "post_attention_layernorm.weight"},
    {Role::kMlpNorm, "pre_feedforward_layernorm.weight"},
    {Role::kGate, "mlp.gate_proj.weight"},
    {Role::kUp, "mlp.up_proj.weight"},
    {Role::kDown, "mlp.down_proj.weight"},
    {Role::kMlpPostNorm, "post_feedforward_layernorm.weight"},
    {Role::kFinalNorm, "norm.weight"},
};

LlamaDefaults Defaults() {
  LlamaDefaults defaults;
  defaults.hidden = 2304;
  defaults.layers = 26;
  defaults.heads = 8;
  defaults.kv_heads = 4;
  defaults.head_dim = 256;
  defaults.ffn = 9216;
  defaults.vocabulary = 262208;
  defaults.context_length = 131072;
  defaults.tied = true;
  defaults.one_rope = false;
  defaults.activation_key = "hidden_activation";
  defaults.activation = "gelu_pytorch_tanh";
  return defaults;
}

// One rope of `key` in transformers 5's rope_parameters, by kind of layer; where it is not there,
// the plain one of `theta`.
absl::StatusOr<RopeSpec> NestedRope(const JsonObject& config, const char* key, double theta,
                                    const ModelSpec& spec) {
  const RopeContext context = {spec.head_dim, spec.context_length, theta};
  ASSIGN_OR_RETURN(const JsonObject all, config.Object("rope_parameters"));
  if (!all.Has(key)) return PlainRope(spec.head_dim, theta);
  ASSIGN_OR_RETURN(const JsonObject parameters, all.Object(key));
  return RopeFromParameters(parameters, context);
}

// Old files: rope_theta and rope_scaling of the global layers, rope_local_base_freq of the others.
absl::Status ReadRopes(const JsonObject& config, ModelSpec* spec) {
  RETURN_IF_ERROR(CheckRotated(spec->head_dim, config.where()));
  ASSIGN_OR_RETURN(const double global, config.Number("rope_theta", kGlobalTheta, 1, 1e15));
  ASSIGN_OR_RETURN(const double local, config.Number("rope_local_base_freq", kLocalTheta, 1, 1e15));
  if (!config.Has("rope_parameters")) {
    ASSIGN_OR_RETURN(spec->rope, RopeFromHf(config, spec->head_dim, spec->context_length, global));
    spec->local_rope = PlainRope(spec->head_dim, local);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const JsonObject all, config.Object("rope_parameters"));
  if (!all.Has("full_attention") && !all.Has("sliding_attention")) {
    return config.Wrong("rope_parameters", "by kind of layer: full_attention, sliding_attention");
  }
  if (config.Has("rope_scaling")) {
    return config.Wrong("rope_scaling", "absent where rope_parameters is given");
  }
  ASSIGN_OR_RETURN(spec->rope, NestedRope(config, "full_attention", global, *spec));
  ASSIGN_OR_RETURN(spec->local_rope, NestedRope(config, "sliding_attention", local, *spec));
  return absl::OkStatus();
}

absl::Status ReadAttention(const JsonObject& config, ModelSpec* spec) {
  ASSIGN_OR_RETURN(const bool both_ways, config.Bool("use_bidirectional_attention", false));
  if (both_ways) return config.Wrong("use_bidirectional_attention", "false");
  ASSIGN_OR_RETURN(const double scalar, config.Number("query_pre_attn_scalar", 256, 1e-6, 1e6));
  spec->attention_scale = static_cast<float>(1 / std::sqrt(scalar));
  ASSIGN_OR_RETURN(spec->qkv_bias, config.Bool("attention_bias", false));
  spec->output_bias = spec->qkv_bias;
  const int64_t fallback = config.Find("sliding_window") != nullptr ? 0 : 4096;
  ASSIGN_OR_RETURN(spec->sliding_window, config.Int("sliding_window", fallback, 1, INT32_MAX));
  ASSIGN_OR_RETURN(const int64_t pattern, config.Int("sliding_window_pattern", 6, 1, INT32_MAX));
  if (spec->sliding_window == 0) return config.Wrong("sliding_window", "an integer of 1 or more");
  return ReadLayerTypes(
      config, [=](int64_t layer) { return (layer + 1) % pattern != 0; }, spec);
}

absl::StatusOr<ModelSpec> Gemma3FromHf(const JsonObject& config) {
  ASSIGN_OR_RETURN(ModelSpec spec, LlamaSpecFromHf(config, Defaults()));
  spec.architecture = "gemma3";
  RETURN_IF_ERROR(ReadRopes(config, &spec));
  RETURN_IF_ERROR(ReadAttention(config, &spec));
  spec.norm_plus_one = spec.post_norms = spec.head_norms = true;
  spec.embedding_scale = static_cast<float>(std::sqrt(static_cast<double>(spec.hidden)));
  // attn_logit_softcapping may stand beside it, but transformers does not apply that one.
  ASSIGN_OR_RETURN(const double cap, config.Number("final_logit_softcapping", 0, 1e-3, 1e6));
  spec.logit_cap = static_cast<float>(cap);
  return spec;
}

absl::Status BindGemma3(FileFormat /*format*/, const TensorTable& table, ModelSpec* spec,
                        std::vector<WeightBinding>* weights) {
  return BindHfWeights(table, {"model.", "layers.", kTensors}, nullptr, spec, weights);
}

}  // namespace

const Family kGemma3Family = {"gemma3_text", "", 2, 1, Gemma3FromHf, nullptr, BindGemma3};

}  // namespace pergola
