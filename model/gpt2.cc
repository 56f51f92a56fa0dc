#include "model/gpt2.h"

#include <cmath>

#include "base/limits.h"
#include "base/status.h"

namespace pergola {
namespace {

constexpr RoleTensor kTensors[] = {
    {Role::kTokenEmbedding, "wte.weight"},
    {Role::kPositionEmbedding, "wpe.weight"},
    {Role::kAttentionNorm, "ln_1.weight"},
    {Role::kAttentionNormBias, "ln_1.bias"},
    {Role::kQuery, "attn.c_attn.weight"},
    {Role::kKey, "attn.c_attn.weight"},
    {Role::kValue, "attn.c_attn.weight"},
    {Role::kQueryBias, "attn.c_attn.bias"},
    {Role::kKeyBias, "attn.c_attn.bias"},
    {Role::kValueBias, "attn.c_attn.bias"},
    {Role::kAttentionOutput, "attn.c_proj.weight"},
    {Role::kAttentionOutputBias, "attn.c_proj.bias"},
    {Role::kMlpNorm, "ln_2.weight"},
    {Role::kMlpNormBias, "ln_2.bias"},
    {Role::kUp, "mlp.c_fc.weight"},
    {Role::kUpBias, "mlp.c_fc.bias"},
    {Role::kDown, "mlp.c_proj.weight"},
    {Role::kDownBias, "mlp.c_proj.bias"},
    {Role::kFinalNorm, "ln_f.weight"},
    {Role::kFinalNormBias, "ln_f.bias"},
};

absl::Status ReadSizes(const JsonObject& config, ModelSpec* spec) {
  ASSIGN_OR_RETURN(spec->hidden, ReadSize(config, {"n_embd", "hidden_size", 768, kMaxHidden}));
  ASSIGN_OR_RETURN(spec->layers,
                   ReadSize(config, {"n_layer", "num_hidden_layers", 12, kMaxLayers}));
  ASSIGN_OR_RETURN(spec->heads,
                   ReadSize(config, {"n_head", "num_attention_heads", 12, kMaxHidden}));
  if (spec->hidden % spec->heads != 0) {
    return config.Wrong(config.Has("n_head") ? "n_head" : "num_attention_heads",
                        absl::StrCat("a divisor of n_embd ", spec->hidden));
  }
  spec->kv_heads = spec->heads;
  spec->head_dim = spec->hidden / spec->heads;
  ASSIGN_OR_RETURN(spec->ffn, config.Int("n_inner", 4 * spec->hidden, 1, int64_t{8} * kMaxHidden));
  ASSIGN_OR_RETURN(spec->vocabulary, config.Int("vocab_size", 50257, 1, kMaxVocabulary));
  ASSIGN_OR_RETURN(spec->context_length,
                   ReadSize(config, {"n_positions", "max_position_embeddings", 1024, INT32_MAX}));
  return absl::OkStatus();
}

absl::StatusOr<ModelSpec> Gpt2FromHf(const JsonObject& config) {
  ASSIGN_OR_RETURN(ModelSpec spec, GptSpecFromHf(config, "gelu_new"));
  spec.architecture = "gpt2";
  ASSIGN_OR_RETURN(spec.scale_by_layer, config.Bool("scale_attn_by_inverse_layer_idx", false));
  // Changes the order of roundings in mixed precision; here all of attention is f32 anyway.
  RETURN_IF_ERROR(config.Bool("reorder_and_upcast_attn", false).status());
  return spec;
}

// Matrices are Conv1D's: [inputs, outputs].
absl::Status BindGpt2(FileFormat /*format*/, const TensorTable& table, ModelSpec* spec,
                      std::vector<WeightBinding>* weights) {
  const auto adjust = [spec](Role role, WeightPlacement* placement) {
    PlaceStackedQkv(*spec, role, placement);
    placement->transposed =
        role != Role::kTokenEmbedding && role != Role::kPositionEmbedding && role != Role::kLmHead;
  };
  return BindHfWeights(table, kGptNames, adjust, spec, weights);
}

}  // namespace

const HfNames kGptNames = {"transformer.", "h.", kTensors};

absl::StatusOr<ModelSpec> GptSpecFromHf(const JsonObject& config,
                                        std::string_view default_activation) {
  RETURN_IF_ERROR(RefuseUnsupportedHf(config));
  ModelSpec spec;
  RETURN_IF_ERROR(ReadSizes(config, &spec));
  RETURN_IF_ERROR(CheckSpec(spec, config.where()));
  spec.norm = NormKind::kLayer;
  ASSIGN_OR_RETURN(const double epsilon, config.Number("layer_norm_epsilon", 1e-5, 0, 1));
  spec.norm_epsilon = static_cast<float>(epsilon);
  spec.learned_positions = true;
  ASSIGN_OR_RETURN(const bool scaled, config.Bool("scale_attn_weights", true));
  spec.attention_scale =
      scaled ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim))) : 1.0F;
  ASSIGN_OR_RETURN(spec.activation,
                   ReadActivation(config, "activation_function", default_activation));
  spec.gated_mlp = false;
  spec.qkv_bias = spec.output_bias = spec.mlp_bias = true;
  ASSIGN_OR_RETURN(spec.tied_embeddings, config.Bool("tie_word_embeddings", true));
  return spec;
}

const Family kGpt2Family = {"gpt2", "", 50256, 50256, Gpt2FromHf, nullptr, BindGpt2};

}  // namespace pergola
