// The goldens of tests/golden/llama, families and gguf: checkpoints and what Hugging Face
// transformers says of them (scripts/goldens_llama.py, goldens_families.py, goldens_gguf.py).
#pragma once

#include <algorithm>
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

// The goldens of a folder of tests/golden, each named "`prefix`its folder": what is there is
// tested.
inline std::vector<std::string> GoldensIn(const std::string& folder, const std::string& prefix) {
  std::vector<std::string> names;
  const std::filesystem::path path = std::filesystem::path(PERGOLA_TEST_DATA) / "golden" / folder;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (entry.is_directory()) names.push_back(prefix + entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline const std::vector<std::string>& GoldenNames() {
  static const std::vector<std::string> names = GoldensIn("llama", "");
  return names;
}

// Each family beside Llama: the first word of a name is the family.
inline const std::vector<std::string>& FamilyGoldenNames() {
  static const std::vector<std::string> names = GoldensIn("families", "");
  return names;
}

// GGUF files that llama.cpp's converter wrote, and one of every block format.
inline const std::vector<std::string>& GgufGoldenNames() {
  static const std::vector<std::string> names = GoldensIn("gguf", "gguf/");
  return names;
}

// The name of a golden as a part of a test's name.
inline std::string TestName(std::string golden) {
  std::replace(golden.begin(), golden.end(), '/', '_');
  return golden;
}

inline Golden LoadGolden(const std::string& name) {
  const std::string goldens = std::string(PERGOLA_TEST_DATA) + "/golden/";
  std::string folder = goldens + name;
  for (const char* group : {"families/", "llama/"}) {
    if (std::filesystem::exists(goldens + group + name)) folder = goldens + group + name;
  }
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
