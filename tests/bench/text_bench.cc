// How fast text becomes ids, in bytes per second: each kind of tokenizer on 1 MiB of each kind of
// text, one word of 1 MiB included. The tokenizers are those of tests/golden/tokenizer.
#include <benchmark/benchmark.h>

#include <cstdio>
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

const std::pair<const char*, std::string> kTexts[] = {
    {"text", Repeated("The capital of France is Paris, they'll say 1234. def f(x): return x\n")},
    {"one_letter", Repeated("a")},
    {"one_word", Repeated("anothershortwordthenlongerones")},
    {"spaces", Repeated(" ")},
    {"Chinese", Repeated("\xE4\xB8\xAD\xE6\x96\x87\xE6\x9C\xAC")},
    {"emoji", Repeated("\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD")},
};

std::unique_ptr<const Tokenizer> Load(const std::string& name) {
  const std::string path =
      std::string(PERGOLA_TEST_DATA) + "/golden/tokenizer/" + name + ".tokenizer.json";
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  TextParts parts;
  parts.tokenizer_json = content.str();
  auto tokenizer = Tokenizer::Create(parts);
  if (!tokenizer.ok()) {
    std::fprintf(stderr, "%s: %s\n", path.c_str(), tokenizer.status().ToString().c_str());
    std::exit(1);
  }
  return *std::move(tokenizer);
}

void Encode(benchmark::State& state, const char* name, const std::string& text) {
  const auto tokenizer = Load(name);
  for (auto _ : state) {
    const auto ids = tokenizer->Encode(text, /*add_special_tokens=*/false);
    if (!ids.ok()) state.SkipWithError(ids.status().ToString().c_str());
    benchmark::DoNotOptimize(ids->size());
  }
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * text.size()));
}

void Register() {
  for (const char* name : {"gpt2", "llama3", "bloom", "llama2", "gemma", "unigram"}) {
    for (const auto& [what, text] : kTexts) {
      benchmark::RegisterBenchmark((std::string(name) + "/" + what).c_str(), Encode, name, text)
          ->Unit(benchmark::kMillisecond);
    }
  }
}

}  // namespace
}  // namespace pergola

int main(int argc, char** argv) {
  pergola::Register();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
