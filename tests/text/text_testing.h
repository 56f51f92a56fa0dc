// What the tests of tokenizers share: files of goldens and tokenizers made from JSON.
#pragma once

#include <fstream>
#include <memory>
#include <sstream>
#include <string>

#include "coordinator/text/tokenizer.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace pergola {

inline std::string ReadGolden(const std::string& name) {
  const std::string path = std::string(PERGOLA_TEST_DATA) + "/golden/tokenizer/" + name;
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

inline absl::StatusOr<std::unique_ptr<const Tokenizer>> TokenizerFromJson(std::string json) {
  TextParts parts;
  parts.tokenizer_json = std::move(json);
  return Tokenizer::Create(parts);
}

// A byte-level tokenizer of the 95 printable ASCII characters and the few given merges, to be
// edited by tests.
inline nlohmann::json SmallTokenizer() {
  nlohmann::json vocabulary;
  int id = 0;
  for (char c = '!'; c <= '~'; ++c) vocabulary[std::string(1, c)] = id++;
  vocabulary["\xC4\xA0"] = id++;  // the space's spelling
  for (const char* token : {"ab", "abc", "he", "ll", "llo", "hello"}) vocabulary[token] = id++;
  nlohmann::json model = {{"type", "BPE"},
                          {"vocab", vocabulary},
                          {"merges", {"a b", "ab c", "h e", "l l", "ll o", "he llo"}}};
  nlohmann::json special = {{"id", id}, {"content", "<|end|>"}, {"special", true}};
  return {{"version", "1.0"},
          {"model", model},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"added_tokens", nlohmann::json::array({special})}};
}

}  // namespace pergola
