#include "coordinator/text/gguf_pre_tokenizers.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "coordinator/text/pre_tokenizer.h"

namespace pergola {
namespace {

// The patterns are those of the tokenizer.json files that the models' makers published, which
// llama.cpp's list of names (llama-vocab.cpp, llm_tokenizer_bpe) quotes. Where llama.cpp adapted
// them to its own engine (case folding, possessive quantifiers) or leaves out a normalizer (Qwen,
// GPT-NeoX), the published file is right.

// meta-llama/Meta-Llama-3-8B.
constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
// Qwen/Qwen2-7B.
constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
// Qwen/Qwen3.5.
constexpr char kQwen35[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|)"
                           R"( ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// bigscience/bloom; the nested class is Oniguruma's.
constexpr char kBloom[] = R"( ?[^(\s|[.,!?…。，、।۔،])]+)";
// mistralai/Mistral-Nemo-Base-2407.
constexpr char kTekken[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// OpenAI's o200k_base, as in meta-llama/Llama-4-Scout-17B-16E.
constexpr char kGpt4o[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// deepseek-ai/DeepSeek-V3: numbers, Chinese and Japanese, then the rest.
constexpr char kUpToThreeDigits[] = R"(\p{N}{1,3})";
constexpr char kHanAndKana[] = R"([一-龥\x{3040}-ゟ゠-ヿ]+)";
constexpr char kDeepSeek3[] =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// deepseek-ai/deepseek-coder-6.7b-base and deepseek-llm-7b-base.
constexpr char kLineEnd[] = R"([\r\n])";
constexpr char kSpacedLetters[] = R"(\s?\p{L}+)";
constexpr char kSpacedPunctuation[] = R"(\s?\p{P}+)";
constexpr char kSpacesAtTheEnd[] = R"(\s+$)";
constexpr char kEastAsian[] = "[一-龥ࠀ-一가-\xED\x9F\xBF]+";
constexpr char kDigit[] = R"(\p{N})";
constexpr char kDigits[] = R"(\p{N}+)";
constexpr char kDeepSeekLetters[] =
    R"(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-)"
    R"(ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮ)"
    R"(ⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)";
constexpr char kDeepSeekPunctuation[] = R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)";
// ByteDance-Seed/Seed-Coder-8B-Base.
constexpr char kSeedCoder[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}|)"
                              R"( ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+)";

const std::vector<GgufPreTokenizer>& Definitions() {
  static const auto* const definitions = new std::vector<GgufPreTokenizer>{
      {{"gpt-2", "phi-2", "jais", "gigachat", "mellum", "trillion", "granite-docling", "exaone4"},
       {kByteLevelPattern}},
      {{"mpt", "olmo"}, {kByteLevelPattern}, false, /*nfc=*/true},
      {{"smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"},
       {kByteLevelPattern},
       /*individual_digits=*/true},
      {{"command-r"}, {kByteLevelPattern}, /*individual_digits=*/true, /*nfc=*/true, false, true},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "midm-2.0", "lfm2"},
       {kLlama3},
       false,
       false,
       /*ignore_merges=*/true,
       /*add_bos=*/true},
      {{"dbrx", "smaug-bpe", "glm4"}, {kLlama3}},
      {{"qwen2", "deepseek-r1-qwen", "megrez"}, {kQwen2}, false, /*nfc=*/true},
      {{"stablelm2", "grok-2", "hunyuan"}, {kQwen2}},
      {{"qwen35"}, {kQwen35}, false, /*nfc=*/true},
      {{"bloom", "poro-chat", "gpt3-finnish"}, {kBloom}},
      {{"viking"}, {kBloom, kDigit}},
      {{"tekken"}, {kTekken}, false, false, /*ignore_merges=*/true, /*add_bos=*/true},
      {{"gpt-4o", "llama4"}, {kGpt4o}},
      {{"deepseek-llm"},
       {kLineEnd, kDeepSeekLetters, kDeepSeekPunctuation, kSpacesAtTheEnd, kEastAsian, kDigits}},
      {{"deepseek-coder"}, {kLineEnd, kSpacedLetters, kSpacedPunctuation, kEastAsian, kDigit}},
      {{"deepseek-v3", "hunyuan-dense"}, {kUpToThreeDigits, kHanAndKana, kDeepSeek3}},
      {{"seed-coder"}, {kSeedCoder}},
      {{"falcon"}, {kByteLevelPattern}, false, false, false, false, /*falcon=*/true},
  };
  return *definitions;
}

}  // namespace

absl::StatusOr<const GgufPreTokenizer*> FindGgufPreTokenizer(const std::string& name) {
  std::vector<std::string> known;
  for (const GgufPreTokenizer& definition : Definitions()) {
    for (const char* candidate : definition.names) {
      if (name == candidate) return &definition;
      known.emplace_back(candidate);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.ggml.pre \"", absl::Utf8SafeCHexEscape(name),
                   "\" is not supported; known: ", absl::StrJoin(known, ", ")));
}

}  // namespace pergola
