// How fast text becomes ids, in bytes per second: each kind of tokenizer on 1 MiB of each kind of
// text, one word of 1 MiB included.
//   text_bench [FILE ...]     FILE: a tokenizer.json; without any: those of tests/golden/tokenizer
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "coordinator/text/tokenizer.h"

namespace pergola {
namespace {

constexpr size_t kBytes = 1 << 20;

std::string Repeated(const std::string& piece) {
  std::string text;
  while (text.size() < kBytes) text += piece;
  return text;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  return content.str();
}

// The tests of this repository: few of their lines repeat.
std::string SourceCode() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(PERGOLA_TEST_DATA)) {
    if (entry.path().extension() == ".cc") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  std::string code;
  for (const std::string& path : paths) code += ReadFile(path);
  return Repeated(code);
}

const std::pair<const char*, std::string> kTexts[] = {
    {"code", SourceCode()},
    {"text", Repeated("The capital of France is Paris, they'll say 1234. def f(x): return x\n")},
    {"one_letter", Repeated("a")},
    {"one_word", Repeated("anothershortwordthenlongerones")},
    {"spaces", Repeated(" ")},
    {"Chinese", Repeated("\xE4\xB8\xAD\xE6\x96\x87\xE6\x9C\xAC")},
    {"emoji", Repeated("\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD")},
};

std::unique_ptr<const Tokenizer> Load(const std::string& path) {
  TextParts parts;
  parts.tokenizer_json = ReadFile(path);
  auto tokenizer = Tokenizer::Create(parts);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s: %s\n", path.c_str(), tokenizer.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(tokenizer);
}

void Encode(benchmark::State& state, const std::shared_ptr<const Tokenizer>& tokenizer,
            const std::string& text) {
  for (auto _ : state) {
    const auto ids = tokenizer->Encode(text, /*add_special_tokens=*/false);
    if (!ids.ok()) state.SkipWithError(ids.status().ToString().c_str());
    benchmark::DoNotOptimize(ids->size());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}

void Register(const std::string& name, const std::string& path) {
  const std::shared_ptr<const Tokenizer> tokenizer = Load(path);  // of all its benchmarks
  for (const auto& [what, text] : kTexts) {
    benchmark::RegisterBenchmark((name + "/" + what).c_str(), Encode, tokenizer, text)
        ->Unit(benchmark::kMillisecond);
  }
}

void RegisterGoldens() {
  for (const std::string name : {"gpt2", "llama3", "bloom", "llama2", "gemma", "unigram"}) {
    Register(name, PERGOLA_TEST_DATA "/golden/tokenizer/" + name + ".tokenizer.json");
  }
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (argc == 1) pergola::RegisterGoldens();
  for (int i = 1; i < argc; ++i) {
    pergola::Register(std::filesystem::path(argv[i]).stem().stem().string(), argv[i]);
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
