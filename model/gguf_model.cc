#include "model/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <iterator>
#include <utility>

#include "base/check.h"
#include "base/limits.h"
#include "base/status.h"
#include "model/family.h"
#include "model/rope.h"

namespace pergola {
namespace {

constexpr double kDefaultTheta = 10000;
constexpr double kMaxFactor = 1e6;

// Keys that change the computation in a way that no family here has, and the value that means that
// they do not.
struct Neutral {
  const char* key;
  double value;
};
constexpr Neutral kNeutral[] = {{"expert_count", 0},
                                {"logit_scale", 1},
                                {"embedding_scale", 1},
                                {"residual_scale", 1},
                                {"attn_logit_softcapping", 0},
                                {"attention.clamp_kqv", 0},
                                {"attention.max_alibi_bias", 8},
                                {"rope.scaling.attn_factor", 1},
                                {"rope.scaling.yarn_ext_factor", 1},
                                {"rope.scaling.yarn_log_multiplier", 0}};

// After "blk.N." where a role is of a layer.
constexpr RoleTensor kTensors[] = {
    {Role::kTokenEmbedding, "token_embd.weight"},
    {Role::kPositionEmbedding, "position_embd.weight"},
    {Role::kEmbeddingNorm, "token_embd_norm.weight"},
    {Role::kEmbeddingNormBias, "token_embd_norm.bias"},
    {Role::kAttentionNorm, "attn_norm.weight"},
    {Role::kAttentionNormBias, "attn_norm.bias"},
    {Role::kQuery, "attn_q.weight"},
    {Role::kKey, "attn_k.weight"},
    {Role::kValue, "attn_v.weight"},
    {Role::kQueryBias, "attn_q.bias"},
    {Role::kKeyBias, "attn_k.bias"},
    {Role::kValueBias, "attn_v.bias"},
    {Role::kQueryNorm, "attn_q_norm.weight"},
    {Role::kKeyNorm, "attn_k_norm.weight"},
    {Role::kAttentionOutput, "attn_output.weight"},
    {Role::kAttentionOutputBias, "attn_output.bias"},
    {Role::kAttentionPostNorm, "post_attention_norm.weight"},
    {Role::kMlpNorm, "ffn_norm.weight"},
    {Role::kMlpNormBias, "ffn_norm.bias"},
    {Role::kGate, "ffn_gate.weight"},
    {Role::kUp, "ffn_up.weight"},
    {Role::kGateBias, "ffn_gate.bias"},
    {Role::kUpBias, "ffn_up.bias"},
    {Role::kDown, "ffn_down.weight"},
    {Role::kDownBias, "ffn_down.bias"},
    {Role::kMlpPostNorm, "post_ffw_norm.weight"},
    {Role::kFinalNorm, "output_norm.weight"},
    {Role::kFinalNormBias, "output_norm.bias"},
    {Role::kLmHead, "output.weight"},
};

std::string NameOf(Role role, int64_t layer) {
  const auto* found = std::find_if(std::begin(kTensors), std::end(kTensors),
                                   [&](const RoleTensor& one) { return one.role == role; });
  PERGOLA_CHECK(found != std::end(kTensors));
  return layer < 0 ? std::string(found->name) : absl::StrCat("blk.", layer, ".", found->name);
}

absl::Status RefuseUnsupported(const GgufKeys& keys) {
  for (const Neutral& one : kNeutral) {
    RETURN_IF_ERROR(keys.Number(one.key, one.value, one.value, one.value).status());
  }
  ASSIGN_OR_RETURN(const bool causal, keys.metadata().Bool(keys.Key("attention.causal"), true));
  if (!causal) {
    return absl::InvalidArgumentError(absl::StrCat(
        keys.metadata().file(), ": ", keys.Key("attention.causal"), " is false, but must be true"));
  }
  return absl::OkStatus();
}

absl::Status ReadHeads(const GgufKeys& keys, ModelSpec* spec) {
  ASSIGN_OR_RETURN(spec->heads, keys.Int("attention.head_count", std::nullopt, 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec->kv_heads,
                   keys.Int("attention.head_count_kv", spec->heads, 1, spec->heads));
  ASSIGN_OR_RETURN(spec->head_dim, keys.Int("attention.key_length", 0, 1, kMaxHidden));
  if (spec->head_dim == 0) {
    if (spec->hidden % spec->heads != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          keys.metadata().file(), ": ", keys.Key("attention.head_count"), " is ", spec->heads,
          ", but must divide ", keys.Key("embedding_length"), " ", spec->hidden));
    }
    spec->head_dim = spec->hidden / spec->heads;
  }
  return keys.Int("attention.value_length", spec->head_dim, spec->head_dim, spec->head_dim)
      .status();
}

absl::Status ReadSizes(const GgufKeys& keys, ModelSpec* spec) {
  ASSIGN_OR_RETURN(spec->hidden, keys.Int("embedding_length", std::nullopt, 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec->layers, keys.Int("block_count", std::nullopt, 1, kMaxLayers));
  RETURN_IF_ERROR(ReadHeads(keys, spec));
  ASSIGN_OR_RETURN(spec->ffn,
                   keys.Int("feed_forward_length", std::nullopt, 1, int64_t{8} * kMaxHidden));
  ASSIGN_OR_RETURN(spec->context_length, keys.Int("context_length", std::nullopt, 1, INT32_MAX));
  const int64_t tokens = keys.metadata().Count("tokenizer.ggml.tokens");
  const auto fallback = tokens > 0 ? std::optional<int64_t>(tokens) : std::nullopt;
  ASSIGN_OR_RETURN(spec->vocabulary, keys.Int("vocab_size", fallback, 1, kMaxVocabulary));
  return absl::OkStatus();
}

absl::Status ApplyYarn(const GgufKeys& keys, double theta, double factor, const ModelSpec& spec,
                       RopeSpec* rope) {
  YarnScaling scaling;
  scaling.theta = theta;
  scaling.factor = factor;
  ASSIGN_OR_RETURN(scaling.original_context,
                   keys.Number("rope.scaling.original_context_length",
                               static_cast<double>(spec.context_length), 1, 2e9));
  ASSIGN_OR_RETURN(scaling.beta_fast,
                   keys.Number("rope.scaling.yarn_beta_fast", 32, 1e-6, kMaxFactor));
  ASSIGN_OR_RETURN(scaling.beta_slow,
                   keys.Number("rope.scaling.yarn_beta_slow", 1, 1e-6, kMaxFactor));
  // As in config.json: stated, or 0.1 ln(factor) + 1.
  const double inferred = factor <= 1 ? 1.0 : 0.1 * std::log(factor) + 1.0;
  ASSIGN_OR_RETURN(scaling.attention_factor,
                   keys.Number("rope.scaling.yarn_attn_factor", inferred, 0, kMaxFactor));
  ScaleYarn(scaling, rope);
  const double made_for = scaling.original_context * factor;
  rope->made_for = static_cast<int64_t>(std::min<double>(made_for, INT32_MAX));
  return absl::OkStatus();
}

// Llama 3's files carry its frequency scaling as divisors.
absl::Status ApplyRopeFactors(const TensorTable& table, RopeSpec* rope) {
  const std::string name = "rope_freqs.weight";
  if (!table.Contains(name)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const TensorInfo* tensor, table.Require(name, {rope->dims / 2}));
  std::vector<float> factors(rope->inverse_frequency.size());
  if (tensor->dtype != DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor \"", name, "\" is ", ToAbsl(DTypeName(tensor->dtype)), ", but must be f32"));
  }
  RETURN_IF_ERROR(table.Read(
      *tensor, 0,
      absl::MakeSpan(reinterpret_cast<uint8_t*>(factors.data()), factors.size() * sizeof(float))));
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!std::isfinite(factors[i]) || factors[i] <= 0) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" holds ", factors[i],
                                                     " at ", i, "; factors must be positive"));
    }
    rope->inverse_frequency[i] /= factors[i];
  }
  return absl::OkStatus();
}

// One bias anywhere means that its kind must be in every layer: a bias that nothing adds would be
// silently wrong.
void DetectBiases(const TensorTable& table, ModelSpec* spec) {
  const auto any = [&](std::initializer_list<Role> roles) {
    for (int64_t layer = 0; layer < spec->layers; ++layer) {
      for (const Role role : roles) {
        if (table.Contains(NameOf(role, layer))) return true;
      }
    }
    return false;
  };
  spec->qkv_bias = any({Role::kQueryBias, Role::kKeyBias, Role::kValueBias});
  spec->output_bias = any({Role::kAttentionOutputBias});
  spec->mlp_bias = any({Role::kGateBias, Role::kUpBias, Role::kDownBias});
}

}  // namespace

absl::StatusOr<ModelSpec> SpecFromGguf(const GgufKeys& keys, NormKind norm) {
  RETURN_IF_ERROR(RefuseUnsupported(keys));
  ModelSpec spec;
  RETURN_IF_ERROR(ReadSizes(keys, &spec));
  RETURN_IF_ERROR(CheckSpec(spec, keys.metadata().file()));
  spec.norm = norm;
  const char* epsilon_key =
      norm == NormKind::kRms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
  ASSIGN_OR_RETURN(const double epsilon, keys.Number(epsilon_key, std::nullopt, 0, 1));
  spec.norm_epsilon = static_cast<float>(epsilon);
  spec.attention_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_dim)));
  return spec;
}

absl::Status ReadGgufRope(const GgufKeys& keys, ModelSpec* spec) {
  const int64_t dims = spec->head_dim;
  ASSIGN_OR_RETURN(const double theta, keys.Number("rope.freq_base", kDefaultTheta, 1, 1e15));
  RETURN_IF_ERROR(keys.Int("rope.dimension_count", dims, dims, dims).status());
  RETURN_IF_ERROR(CheckRotated(dims, keys.metadata().file()));
  RopeSpec rope = PlainRope(dims, theta);
  ASSIGN_OR_RETURN(const double legacy, keys.Number("rope.scale_linear", 1, 1e-6, kMaxFactor));
  ASSIGN_OR_RETURN(const double factor,
                   keys.Number("rope.scaling.factor", legacy, 1e-6, kMaxFactor));
  const std::string key = keys.Key("rope.scaling.type");
  const std::string fallback = factor == 1 ? "none" : "linear";
  ASSIGN_OR_RETURN(const std::string type, keys.metadata().String(key, fallback));
  if (type == "linear") {
    ScaleLinear(factor, &rope);
  } else if (type == "yarn") {
    RETURN_IF_ERROR(ApplyYarn(keys, theta, factor, *spec, &rope));
  } else if (type != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat(keys.metadata().file(), ": ", key, " is \"", Printable(type),
                     "\", which is not supported; supported: none, linear, yarn"));
  }
  spec->context_length = std::max(spec->context_length, rope.made_for);
  spec->rope = std::move(rope);
  return absl::OkStatus();
}

absl::Status BindGguf(const TensorTable& table, const GgufTensors& tensors, ModelSpec* spec,
                      std::vector<WeightBinding>* weights) {
  spec->tied_embeddings = !table.Contains(NameOf(Role::kLmHead, -1));
  if (tensors.optional_biases) DetectBiases(table, spec);
  if (spec->rope.dims > 0) RETURN_IF_ERROR(ApplyRopeFactors(table, &spec->rope));
  const auto place = [&](Role role, int64_t layer) {
    WeightPlacement placement;
    placement.tensor = NameOf(role, layer);
    const bool bias = role == Role::kQueryBias || role == Role::kKeyBias;
    if (tensors.interleaved_rope && (bias || role == Role::kQuery || role == Role::kKey)) {
      placement.row_order = RowOrder::kGgufInterleavedRope;
    }
    if (tensors.fused_qkv) {
      PlaceStackedQkv(*spec, role, &placement);
      const char* kind = bias || role == Role::kValueBias ? "bias" : "weight";
      if (placement.tensor_rows > 0) {
        placement.tensor = absl::StrCat("blk.", layer, ".attn_qkv.", kind);
      }
    }
    return placement;
  };
  return BindWeights(table, *spec, place, weights);
}

}  // namespace pergola
