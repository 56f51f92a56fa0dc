// The other side of scripts/tokenizer_judge: prints what a tokenizer makes of texts.
//   tokenizer_ids FILE        FILE: a tokenizer.json or a .gguf with a vocabulary
// Each line of standard input is a JSON string, or a list of ids; each line of output the ids with
// and without special tokens and what the latter decode to, or the text of the ids with and
// without special tokens, always through the stream as well: {"error": ...} if that differs.
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "coordinator/text/tokenizer.h"
#include "model/text_parts.h"
#include "nlohmann/json.hpp"

namespace pergola {
namespace {

using nlohmann::json;

std::string Streamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  const auto stream = MakeTextStream(tokenizer, {});
  std::string text;
  for (const int32_t id : ids) text += stream->Push(id).text;
  return text + stream->Flush();
}

json Answer(const Tokenizer& tokenizer, const json& question) {
  if (question.is_array()) {
    const auto ids = question.get<std::vector<int32_t>>();
    const std::string shown = tokenizer.Decode(ids, true);
    if (Streamed(tokenizer, ids) != shown) return {{"error", "the stream differs"}};
    return {tokenizer.Decode(ids, false), shown};
  }
  const auto text = question.get<std::string>();
  const auto plain = tokenizer.Encode(text, false);
  const auto special = tokenizer.Encode(text, true);
  if (!plain.ok()) return {{"error", plain.status().ToString()}};
  if (!special.ok()) return {{"error", special.status().ToString()}};
  return {*plain, *special};
}

absl::StatusOr<TextParts> Load(const std::string& path) {
  if (path.size() > 5 && path.substr(path.size() - 5) == ".gguf") {
    auto vocabulary = LoadGgufVocabulary(path);
    if (!vocabulary.ok()) return vocabulary.status();
    TextParts parts;
    parts.gguf = *std::move(vocabulary);
    return parts;
  }
  std::ifstream file(path, std::ios::binary);
  if (!file.good()) return absl::NotFoundError(path + ": cannot be opened");
  std::ostringstream content;
  content << file.rdbuf();
  TextParts parts;
  parts.tokenizer_json = content.str();
  return parts;
}

int Main(const std::string& path) {
  const auto parts = Load(path);
  if (!parts.ok()) {
    std::fprintf(stderr, "%s\n", parts.status().ToString().c_str());
    return 2;
  }
  const auto tokenizer = Tokenizer::Create(*parts);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
    return 2;
  }
  for (std::string line; std::getline(std::cin, line);) {
    const json question = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!question.is_array() && !question.is_string()) {
      std::fprintf(stderr, "a line is neither a string nor a list of ids: %s\n", line.c_str());
      return 2;
    }
    std::cout << Answer(**tokenizer, question).dump() << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: tokenizer_ids FILE < LINES\n");
    return 2;
  }
  return pergola::Main(argv[1]);
}
