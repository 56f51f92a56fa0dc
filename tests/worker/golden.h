// The goldens of tests/golden/llama and tests/golden/families: checkpoints and what Hugging Face
// transformers says of them (scripts/goldens_llama.py, scripts/goldens_families.py).
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace pergola {

struct Golden {
  std::string name;
  std::string checkpoint;  // path for Checkpoint::Open
  std::vector<int32_t> prompt;
  std::vector<int32_t> greedy;  // the tokens after the prompt
  double bound = 0;             // on the absolute difference of a logit
  std::vector<float> logits;    // [prompt, vocabulary]
};

inline const std::vector<std::string>& GoldenNames() {
  static const std::vector<std::string> names = {
      "mha",          "gqa_tied", "uneven",    "llama3_rope", "mistral_window",
      "sharded_bf16", "gguf_f16", "gguf_q8_0", "gguf_q4_0",   "gguf_q4_1"};
  return names;
}

// Each family beside Llama: the first word of a name is the family.
inline const std::vector<std::string>& FamilyGoldenNames() {
  static const std::vector<std::string> names = {"bloom",
                                                 "bloom_post_norm",
                                                 "bloom_bf16",
                                                 "gpt_bigcode_mqa",
                                                 "gpt_bigcode_mha",
                                                 "gpt_bigcode_unscaled",
                                                 "gpt2",
                                                 "gpt2_by_layer",
                                                 "gpt2_unscaled",
                                                 "llama_linear",
                                                 "llama_yarn",
                                                 "qwen2",
                                                 "qwen2_yarn",
                                                 "qwen3",
                                                 "qwen3_window",
                                                 "gemma3",
                                                 "gemma3_bias"};
  return names;
}

inline Golden LoadGolden(const std::string& name) {
  const std::string goldens = std::string(PERGOLA_TEST_DATA) + "/golden/";
  const bool family = std::filesystem::exists(goldens + "families/" + name);
  const std::string folder = goldens + (family ? "families/" : "llama/") + name;
  std::ifstream text(folder + "/golden.json");
  const auto json = nlohmann::json::parse(text);
  Golden golden;
  golden.name = name;
  const auto file = json.at("checkpoint").get<std::string>();
  golden.checkpoint = file == "." ? folder : folder + "/" + file;
  golden.prompt = json.at("prompt").get<std::vector<int32_t>>();
  golden.greedy = json.at("greedy").get<std::vector<int32_t>>();
  golden.bound = json.at("bound").get<double>();
  std::ifstream raw(folder + "/logits.f32", std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(raw)), std::istreambuf_iterator<char>());
  golden.logits.resize(bytes.size() / sizeof(float));
  std::memcpy(golden.logits.data(), bytes.data(), golden.logits.size() * sizeof(float));
  return golden;
}

}  // namespace pergola
