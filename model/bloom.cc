#include "model/bloom.h"

#include <algorithm>
#include <cmath>

#include "base/limits.h"
#include "base/status.h"

namespace pergola {
namespace {

// What the model was trained on; BloomConfig has no key for it, published files have seq_length.
constexpr int64_t kDefaultContext = 2048;

constexpr RoleTensor kTensors[] = {
    {Role::kTokenEmbedding, "word_embeddings.weight"},
    {Role::kEmbeddingNorm, "word_embeddings_layernorm.weight"},
    {Role::kEmbeddingNormBias, "word_embeddings_layernorm.bias"},
    {Role::kAttentionNorm, "input_layernorm.weight"},
    {Role::kAttentionNormBias, "input_layernorm.bias"},
    {Role::kQuery, "self_attention.query_key_value.weight"},
    {Role::kKey, "self_attention.query_key_value.weight"},
    {Role::kValue, "self_attention.query_key_value.weight"},
    {Role::kQueryBias, "self_attention.query_key_value.bias"},
    {Role::kKeyBias, "self_attention.query_key_value.bias"},
    {Role::kValueBias, "self_attention.query_key_value.bias"},
    {Role::kAttentionOutput, "self_attention.dense.weight"},
    {Role::kAttentionOutputBias, "self_attention.dense.bias"},
    {Role::kMlpNorm, "post_attention_layernorm.weight"},
    {Role::kMlpNormBias, "post_attention_layernorm.bias"},
    {Role::kUp, "mlp.dense_h_to_4h.weight"},
    {Role::kUpBias, "mlp.dense_h_to_4h.bias"},
    {Role::kDown, "mlp.dense_4h_to_h.weight"},
    {Role::kDownBias, "mlp.dense_4h_to_h.bias"},
    {Role::kFinalNorm, "ln_f.weight"},
    {Role::kFinalNormBias, "ln_f.bias"},
};

const HfNames kNames = {"transformer.", "h.", kTensors};

absl::Status ReadSizes(const JsonObject& config, ModelSpec* spec) {
  ASSIGN_OR_RETURN(spec->hidden, ReadSize(config, {"hidden_size", "n_embed", 64, kMaxHidden}));
  ASSIGN_OR_RETURN(spec->layers, ReadSize(config, {"n_layer", "num_hidden_layers", 2, kMaxLayers}));
  ASSIGN_OR_RETURN(spec->heads, ReadSize(config, {"n_head", "num_attention_heads", 8, kMaxHidden}));
  if (spec->hidden % spec->heads != 0) {
    return config.Wrong(config.Has("n_head") ? "n_head" : "num_attention_heads",
                        absl::StrCat("a divisor of hidden_size ", spec->hidden));
  }
  spec->kv_heads = spec->heads;
  spec->head_dim = spec->hidden / spec->heads;
  spec->ffn = 4 * spec->hidden;
  ASSIGN_OR_RETURN(spec->vocabulary, config.Int("vocab_size", 250880, 1, kMaxVocabulary));
  ASSIGN_OR_RETURN(spec->context_length, config.Int("seq_length", kDefaultContext, 1, INT32_MAX));
  return absl::OkStatus();
}

absl::StatusOr<ModelSpec> BloomFromHf(const JsonObject& config) {
  RETURN_IF_ERROR(RefuseUnsupportedHf(config));
  ModelSpec spec;
  spec.architecture = "bloom";
  RETURN_IF_ERROR(ReadSizes(config, &spec));
  RETURN_IF_ERROR(CheckSpec(spec, config.where()));
  spec.norm = NormKind::kLayer;
  ASSIGN_OR_RETURN(const double epsilon, config.Number("layer_norm_epsilon", 1e-5, 0, 1));
  spec.norm_epsilon = static_cast<float>(epsilon);
  spec.embedding_norm = true;
  ASSIGN_OR_RETURN(spec.residual_after_norm,
                   config.Bool("apply_residual_connection_post_layernorm", false));
  spec.alibi_slopes = AlibiSlopes(spec.heads);
  spec.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim)));
  spec.activation = Activation::kGeluTanh;
  spec.gated_mlp = false;
  spec.qkv_bias = spec.output_bias = spec.mlp_bias = true;
  ASSIGN_OR_RETURN(spec.tied_embeddings, config.Bool("tie_word_embeddings", true));
  return spec;
}

// The rows of query_key_value are [q k v] of each head in turn.
absl::Status BindBloom(FileFormat /*format*/, const TensorTable& table, ModelSpec* spec,
                       std::vector<WeightBinding>* weights) {
  const auto adjust = [spec](Role role, WeightPlacement* placement) {
    PlaceInterleavedQkv(*spec, role, placement);
  };
  return BindHfWeights(table, kNames, adjust, spec, weights);
}

}  // namespace

std::vector<float> AlibiSlopes(int64_t heads) {
  int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  std::vector<float> slopes;
  for (int64_t head = 0; head < heads; ++head) {
    const bool extra = head >= power;
    const int64_t step = extra ? 2 * (head - power) + 1 : head + 1;
    // Rounded to f32 before it is raised, as Hugging Face does, so that far distances agree.
    const auto base =
        static_cast<float>(std::exp2(-8.0 / static_cast<double>(extra ? 2 * power : power)));
    slopes.push_back(static_cast<float>(std::pow(static_cast<double>(base), step)));
  }
  return slopes;
}

const Family kBloomFamily = {"bloom", "", 1, 2, BloomFromHf, nullptr, BindBloom};

}  // namespace pergola
