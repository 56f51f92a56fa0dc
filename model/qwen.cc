#include "model/qwen.h"

#include "base/status.h"
#include "model/gguf_model.h"
#include "model/llama.h"

namespace pergola {
namespace {

// Of Qwen2Config and of Qwen3Config.
LlamaDefaults Defaults(int64_t head_dim) {
  LlamaDefaults defaults;
  defaults.kv_heads = 32;
  defaults.head_dim = head_dim;
  defaults.ffn = 22016;
  defaults.vocabulary = 151936;
  defaults.context_length = 32768;
  return defaults;
}

// The window counts only with use_sliding_window, and then from layer max_window_layers on.
absl::Status ReadWindow(const JsonObject& config, ModelSpec* spec) {
  ASSIGN_OR_RETURN(const bool used, config.Bool("use_sliding_window", false));
  const int64_t fallback = config.Find("sliding_window") != nullptr ? 0 : 4096;
  ASSIGN_OR_RETURN(const int64_t window, config.Int("sliding_window", fallback, 1, INT32_MAX));
  ASSIGN_OR_RETURN(const int64_t first, config.Int("max_window_layers", 28, 0, INT32_MAX));
  spec->sliding_window = used ? window : 0;
  return ReadLayerTypes(
      config, [=](int64_t layer) { return used && window > 0 && layer >= first; }, spec);
}

absl::StatusOr<ModelSpec> Qwen2FromHf(const JsonObject& config) {
  ASSIGN_OR_RETURN(ModelSpec spec, LlamaSpecFromHf(config, Defaults(0)));
  spec.architecture = "qwen2";
  spec.qkv_bias = true;
  RETURN_IF_ERROR(ReadWindow(config, &spec));
  return spec;
}

absl::StatusOr<ModelSpec> Qwen3FromHf(const JsonObject& config) {
  ASSIGN_OR_RETURN(ModelSpec spec, LlamaSpecFromHf(config, Defaults(128)));
  spec.architecture = "qwen3";
  spec.head_norms = true;
  ASSIGN_OR_RETURN(spec.qkv_bias, config.Bool("attention_bias", false));
  spec.output_bias = spec.qkv_bias;
  RETURN_IF_ERROR(ReadWindow(config, &spec));
  return spec;
}

absl::StatusOr<ModelSpec> QwenFromGguf(const GgufMetadata& metadata, const char* architecture) {
  const GgufKeys keys(metadata, architecture);
  // llama.cpp computes neither with a window.
  RETURN_IF_ERROR(keys.Int("attention.sliding_window", 0, 0, 0).status());
  ASSIGN_OR_RETURN(ModelSpec spec, SpecFromGguf(keys, NormKind::kRms));
  spec.architecture = architecture;
  RETURN_IF_ERROR(ReadGgufRope(keys, &spec));
  return spec;
}

absl::StatusOr<ModelSpec> Qwen2FromGguf(const GgufMetadata& metadata) {
  return QwenFromGguf(metadata, "qwen2");
}

absl::StatusOr<ModelSpec> Qwen3FromGguf(const GgufMetadata& metadata) {
  ASSIGN_OR_RETURN(ModelSpec spec, QwenFromGguf(metadata, "qwen3"));
  spec.head_norms = true;
  return spec;
}

absl::Status BindQwen(FileFormat format, const TensorTable& table, ModelSpec* spec,
                      std::vector<WeightBinding>* weights) {
  if (format == FileFormat::kHuggingFace) return BindLlamaHf(format, table, spec, weights);
  GgufTensors tensors;
  tensors.optional_biases = true;
  return BindGguf(table, tensors, spec, weights);
}

}  // namespace

const Family kQwen2Family = {"qwen2",     "qwen2",       std::nullopt, std::nullopt,
                             Qwen2FromHf, Qwen2FromGguf, BindQwen};
const Family kQwen3Family = {"qwen3",     "qwen3",       std::nullopt, std::nullopt,
                             Qwen3FromHf, Qwen3FromGguf, BindQwen};

}  // namespace pergola
