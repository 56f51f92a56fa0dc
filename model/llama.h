// The Llama family: Llama 1 to 3, SmolLM2, and Mistral, which is the same decoder with other
// defaults and a window. What Qwen and Gemma share with it is here too.
#pragma once

#include "model/family.h"

namespace pergola {

extern const Family kLlamaFamily;
extern const Family kMistralFamily;

// What a configuration class of transformers 5 uses for keys that config.json leaves out.
struct LlamaDefaults {
  int64_t hidden = 4096;
  int64_t layers = 32;
  int64_t heads = 32;
  int64_t kv_heads = 0;  // 0: as many as heads
  int64_t head_dim = 0;  // 0: hidden / heads
  int64_t ffn = 0;
  int64_t vocabulary = 32000;
  int64_t context_length = 0;
  bool tied = false;
  bool one_rope = true;  // false: the family reads its own
  const char* activation_key = "hidden_act";
  const char* activation = "silu";
};
// Sizes, norm, MLP, rope and scale; no biases and no window.
absl::StatusOr<ModelSpec> LlamaSpecFromHf(const JsonObject& config, const LlamaDefaults& defaults);

// Which layers have spec->sliding_window: layer_types, or `windowed` where that is absent.
absl::Status ReadLayerTypes(const JsonObject& config,
                            const std::function<bool(int64_t layer)>& windowed, ModelSpec* spec);

// Binds safetensors by Llama's names, with q_norm and k_norm. A Family's `bind`.
absl::Status BindLlamaHf(FileFormat format, const TensorTable& table, ModelSpec* spec,
                         std::vector<WeightBinding>* weights);

}  // namespace pergola
