// Random tiny Llama checkpoints in both file formats.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/counter_rng.h"
#include "nlohmann/json.hpp"
#include "tests/model/test_files.h"

namespace pergola::testing {
namespace {

// Written out here although model/llama.cc has such a list too: these files judge that list, and a
// name that is wrong there must not be wrong here with it.
struct Names {
  Role role;
  const char* hf;
  const char* gguf;
};
constexpr Names kNames[] = {
    {Role::kTokenEmbedding, "model.embed_tokens.weight", "token_embd.weight"},
    {Role::kAttentionNorm, "input_layernorm.weight", "attn_norm.weight"},
    {Role::kQuery, "self_attn.q_proj.weight", "attn_q.weight"},
    {Role::kKey, "self_attn.k_proj.weight", "attn_k.weight"},
    {Role::kValue, "self_attn.v_proj.weight", "attn_v.weight"},
    {Role::kQueryBias, "self_attn.q_proj.bias", "attn_q.bias"},
    {Role::kKeyBias, "self_attn.k_proj.bias", "attn_k.bias"},
    {Role::kValueBias, "self_attn.v_proj.bias", "attn_v.bias"},
    {Role::kAttentionOutput, "self_attn.o_proj.weight", "attn_output.weight"},
    {Role::kAttentionOutputBias, "self_attn.o_proj.bias", "attn_output.bias"},
    {Role::kMlpNorm, "post_attention_layernorm.weight", "ffn_norm.weight"},
    {Role::kGate, "mlp.gate_proj.weight", "ffn_gate.weight"},
    {Role::kUp, "mlp.up_proj.weight", "ffn_up.weight"},
    {Role::kDown, "mlp.down_proj.weight", "ffn_down.weight"},
    {Role::kGateBias, "mlp.gate_proj.bias", "ffn_gate.bias"},
    {Role::kUpBias, "mlp.up_proj.bias", "ffn_up.bias"},
    {Role::kDownBias, "mlp.down_proj.bias", "ffn_down.bias"},
    {Role::kFinalNorm, "model.norm.weight", "output_norm.weight"},
    {Role::kLmHead, "lm_head.weight", "output.weight"},
};

const Names& NamesOf(Role role) {
  return *std::find_if(std::begin(kNames), std::end(kNames),
                       [&](const Names& names) { return names.role == role; });
}

struct Weight {
  Role role;
  int64_t layer;
};

// In the order of computation.
std::vector<Weight> WeightsOf(const ModelSpec& spec) {
  std::vector<Weight> weights = {{Role::kTokenEmbedding, -1}};
  for (int64_t layer = 0; layer < spec.layers; ++layer) {
    for (const Role role : LayerRoles(spec)) weights.push_back({role, layer});
  }
  weights.push_back({Role::kFinalNorm, -1});
  if (!spec.tied_embeddings) weights.push_back({Role::kLmHead, -1});
  return weights;
}

void AppendHalf(uint16_t bits, std::string* out) {
  *out += Bytes(bits);
}

void EncodeQ8(const float* x, std::string* out) {
  float largest = 0;
  for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(x[i]));
  const uint16_t scale = F32ToF16(largest / 127);
  AppendHalf(scale, out);
  const float d = F16ToF32(scale);
  for (int i = 0; i < 32; ++i) {
    const float q = d == 0 ? 0 : std::nearbyint(x[i] / d);
    *out += Bytes(static_cast<int8_t>(std::clamp(q, -127.0F, 127.0F)));
  }
}

// Both 4-bit types: value = scale * q + minimum; byte i holds values i (low nibble) and i + 16.
void EncodeQ4(bool has_minimum, const float* x, std::string* out) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float extreme = std::fabs(*low) > std::fabs(*high) ? *low : *high;
  const uint16_t scale = F32ToF16(has_minimum ? (*high - *low) / 15 : extreme / -8);
  AppendHalf(scale, out);
  const uint16_t minimum = F32ToF16(*low);
  if (has_minimum) AppendHalf(minimum, out);
  const float d = F16ToF32(scale);
  const float base = has_minimum ? F16ToF32(minimum) : -8 * d;
  uint8_t q[32];
  for (int i = 0; i < 32; ++i) {
    const float steps = d == 0 ? 0 : std::nearbyint((x[i] - base) / d);
    q[i] = static_cast<uint8_t>(std::clamp(steps, 0.0F, 15.0F));
  }
  for (int i = 0; i < 16; ++i) *out += Bytes(static_cast<uint8_t>(q[i] | q[i + 16] << 4));
}

std::vector<float> Drawn(const TinyLlama& model, Role role, int64_t layer) {
  const std::vector<int64_t> shape = ShapeOf(SpecOf(model), role);
  const int64_t columns = shape.size() == 2 ? shape[1] : 1;
  const bool is_norm =
      role == Role::kAttentionNorm || role == Role::kMlpNorm || role == Role::kFinalNorm;
  // Matrices keep the variance of what they multiply; queries and keys twice the size, so that
  // attention is not uniform. Vectors: up to half of one.
  float scale = 0.5F;
  if (shape.size() == 2) scale = std::sqrt(3.0F / static_cast<float>(columns));
  if (role == Role::kQuery || role == Role::kKey) scale *= 2;
  if (role == Role::kTokenEmbedding) scale = 1;
  const auto index = static_cast<uint32_t>(role) + 64 * static_cast<uint32_t>(layer + 1);
  std::vector<float> values;
  values.reserve(static_cast<size_t>(shape[0] * columns));
  for (int64_t r = 0; r < shape[0]; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const double u =
          UniformDraw(model.seed, index, static_cast<uint32_t>(r), static_cast<uint32_t>(c));
      auto value = scale * static_cast<float>(2 * u - 1);
      if (is_norm) value += 1;
      // Vectors fall on multiples of 1/64, which every dtype holds exactly.
      if (shape.size() == 1) value = std::nearbyint(value * 64) / 64;
      values.push_back(value);
    }
  }
  return values;
}

// llama.cpp's order: within a head, row 2i + j holds row i + j * head_dim / 2.
std::vector<float> InterleaveRows(const std::vector<float>& rows, int64_t heads, int64_t head_dim) {
  const auto width = static_cast<int64_t>(rows.size()) / (heads * head_dim);
  std::vector<float> out(rows.size());
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      for (int64_t j = 0; j < 2; ++j) {
        const int64_t from = head * head_dim + i + j * head_dim / 2;
        const int64_t to = head * head_dim + 2 * i + j;
        std::copy_n(rows.begin() + from * width, width, out.begin() + to * width);
      }
    }
  }
  return out;
}

std::string ConfigText(const TinyLlama& model, DType stored) {
  nlohmann::json config;
  config["architectures"] = {"LlamaForCausalLM"};
  config["model_type"] = "llama";
  config["num_hidden_layers"] = model.layers;
  config["hidden_size"] = model.hidden;
  config["num_attention_heads"] = model.heads;
  config["num_key_value_heads"] = model.kv_heads;
  config["head_dim"] = model.head_dim;
  config["intermediate_size"] = model.ffn;
  config["vocab_size"] = model.vocabulary;
  config["max_position_embeddings"] = model.context;
  config["rope_theta"] = model.theta;
  config["rms_norm_eps"] = static_cast<double>(model.epsilon);
  config["tie_word_embeddings"] = model.tied;
  config["attention_bias"] = model.attention_bias;
  config["mlp_bias"] = model.mlp_bias;
  config["bos_token_id"] = nullptr;
  config["eos_token_id"] = nullptr;
  const bool half = stored == DType::kBF16 || stored == DType::kF16;
  config["torch_dtype"] = !half ? "float32" : stored == DType::kBF16 ? "bfloat16" : "float16";
  return config.dump(2);
}

std::string HfName(const Weight& weight) {
  const char* name = NamesOf(weight.role).hf;
  if (weight.layer < 0) return name;
  return absl::StrCat("model.layers.", weight.layer, ".", name);
}

}  // namespace

ModelSpec SpecOf(const TinyLlama& model) {
  ModelSpec spec;
  spec.architecture = "llama";
  spec.layers = model.layers;
  spec.hidden = model.hidden;
  spec.heads = model.heads;
  spec.kv_heads = model.kv_heads;
  spec.head_dim = model.head_dim;
  spec.ffn = model.ffn;
  spec.vocabulary = model.vocabulary;
  spec.context_length = model.context;
  spec.norm_epsilon = model.epsilon;
  spec.attention_scale = 1 / std::sqrt(static_cast<float>(model.head_dim));
  spec.tied_embeddings = model.tied;
  spec.qkv_bias = spec.output_bias = model.attention_bias;
  spec.mlp_bias = model.mlp_bias;
  return spec;
}

std::string Encode(DType dtype, const std::vector<float>& values) {
  PERGOLA_CHECK(static_cast<int64_t>(values.size()) % BlockValues(dtype) == 0);
  std::string out;
  for (size_t i = 0; i < values.size(); i += static_cast<size_t>(BlockValues(dtype))) {
    const float* x = values.data() + i;
    if (dtype == DType::kF32) out += Bytes(*x);
    if (dtype == DType::kBF16) AppendHalf(F32ToBF16(*x), &out);
    if (dtype == DType::kF16) AppendHalf(F32ToF16(*x), &out);
    if (dtype == DType::kQ8_0) EncodeQ8(x, &out);
    if (dtype == DType::kQ4_0 || dtype == DType::kQ4_1) EncodeQ4(dtype == DType::kQ4_1, x, &out);
  }
  return out;
}

std::vector<float> TinyWeight(const TinyLlama& model, Role role, int64_t layer, DType stored) {
  std::vector<float> values = Drawn(model, role, layer);
  if (ShapeOf(SpecOf(model), role).size() == 1) return values;
  const std::string bytes = Encode(stored, values);
  DecodeToF32(stored, bytes.data(), static_cast<int64_t>(values.size()), values.data());
  return values;
}

void WriteTinyHf(const TinyLlama& model, DType stored, const std::string& directory, int shards) {
  const ModelSpec spec = SpecOf(model);
  const bool quantised = BlockValues(stored) > 1;
  const DType file_dtype = quantised ? DType::kF32 : stored;
  const std::string dtype_name = file_dtype == DType::kF32    ? "F32"
                                 : file_dtype == DType::kBF16 ? "BF16"
                                                              : "F16";
  std::vector<std::vector<RawTensor>> files(static_cast<size_t>(shards));
  const std::vector<Weight> weights = WeightsOf(spec);
  nlohmann::json map = nlohmann::json::object();
  for (size_t i = 0; i < weights.size(); ++i) {
    const size_t file = i * files.size() / weights.size();
    const std::string name = HfName(weights[i]);
    map[name] = absl::StrCat("model-", file, ".safetensors");
    files[file].push_back(
        {name, dtype_name, ShapeOf(spec, weights[i].role),
         Encode(file_dtype, TinyWeight(model, weights[i].role, weights[i].layer, stored))});
  }
  WriteFile(directory + "/config.json", ConfigText(model, file_dtype));
  if (shards == 1) {
    WriteFile(directory + "/model.safetensors", SafetensorsBytes(files[0]));
    return;
  }
  for (size_t i = 0; i < files.size(); ++i) {
    WriteFile(absl::StrCat(directory, "/model-", i, ".safetensors"), SafetensorsBytes(files[i]));
  }
  const nlohmann::json index = {{"metadata", nlohmann::json::object()}, {"weight_map", map}};
  WriteFile(directory + "/model.safetensors.index.json", index.dump());
}

std::string TinyGgufBytes(const TinyLlama& model, DType stored,
                          const std::vector<GgufExtra>& extras) {
  const ModelSpec spec = SpecOf(model);
  GgufBuilder gguf;
  gguf.String("general.architecture", "llama");
  gguf.String("general.name", "Tiny");
  gguf.Uint32("llama.block_count", static_cast<uint32_t>(model.layers));
  gguf.Uint32("llama.context_length", static_cast<uint32_t>(model.context));
  gguf.Uint32("llama.embedding_length", static_cast<uint32_t>(model.hidden));
  gguf.Uint32("llama.feed_forward_length", static_cast<uint32_t>(model.ffn));
  gguf.Uint32("llama.attention.head_count", static_cast<uint32_t>(model.heads));
  gguf.Uint32("llama.attention.head_count_kv", static_cast<uint32_t>(model.kv_heads));
  gguf.Uint32("llama.attention.key_length", static_cast<uint32_t>(model.head_dim));
  gguf.Uint32("llama.attention.value_length", static_cast<uint32_t>(model.head_dim));
  gguf.Uint32("llama.rope.dimension_count", static_cast<uint32_t>(model.head_dim));
  gguf.Float32("llama.rope.freq_base", model.theta);
  gguf.Float32("llama.attention.layer_norm_rms_epsilon", model.epsilon);
  gguf.Uint32("llama.vocab_size", static_cast<uint32_t>(model.vocabulary));
  for (const Weight& weight : WeightsOf(spec)) {
    const char* name = NamesOf(weight.role).gguf;
    const std::vector<int64_t> shape = ShapeOf(spec, weight.role);
    const DType dtype = shape.size() == 1 ? DType::kF32 : stored;
    std::vector<float> values = Drawn(model, weight.role, weight.layer);
    if (weight.role == Role::kQuery || weight.role == Role::kQueryBias) {
      values = InterleaveRows(values, model.heads, model.head_dim);
    } else if (weight.role == Role::kKey || weight.role == Role::kKeyBias) {
      values = InterleaveRows(values, model.kv_heads, model.head_dim);
    }
    gguf.Tensor(weight.layer < 0 ? name : absl::StrCat("blk.", weight.layer, ".", name),
                GgmlType(dtype), shape, Encode(dtype, values));
  }
  for (const GgufExtra& extra : extras) {
    gguf.Tensor(extra.name, GgmlType(DType::kF32), extra.shape, Encode(DType::kF32, extra.values));
  }
  return gguf.Build();
}

void WriteTinyGguf(const TinyLlama& model, DType stored, const std::string& path) {
  WriteFile(path, TinyGgufBytes(model, stored));
}

}  // namespace pergola::testing
