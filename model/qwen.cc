#include "model/qwen.h"

#include "base/status.h"
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

}  // namespace

const Family kQwen2Family = {"qwen2",     "",      std::nullopt, std::nullopt,
                             Qwen2FromHf, nullptr, BindLlamaHf};
const Family kQwen3Family = {"qwen3",     "",      std::nullopt, std::nullopt,
                             Qwen3FromHf, nullptr, BindLlamaHf};

}  // namespace pergola
