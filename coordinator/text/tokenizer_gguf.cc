// The GGUF side: a vocabulary whose pre-tokenizer is only named, so each name has its published
// definition here. Where llama.cpp and the published tokenizer.json differ (Qwen's normalizer,
// BLOOM's pattern), the published file is right.
#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tokenizer_parts.h"

namespace pergola {
namespace {

constexpr char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kBloomPattern[] = R"( ?[^(\s|[.,!?…。，、।۔،])]+)";

struct PreTokenizerDefinition {
  const char* name;
  const char* pattern;
  bool individual_digits = false;  // Digits before the pattern
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // what a file without tokenizer.ggml.add_bos_token means
};

constexpr PreTokenizerDefinition kDefinitions[] = {
    {"gpt-2", kByteLevelPattern},
    {"smollm", kByteLevelPattern, /*individual_digits=*/true},
    {"starcoder", kByteLevelPattern, /*individual_digits=*/true},
    {"refact", kByteLevelPattern, /*individual_digits=*/true},
    {"command-r", kByteLevelPattern, /*individual_digits=*/true, /*nfc=*/true, false, true},
    {"llama-bpe", kLlama3Pattern, false, false, /*ignore_merges=*/true, /*add_bos=*/true},
    {"qwen2", kQwen2Pattern, false, /*nfc=*/true},
    {"bloom", kBloomPattern},
};

// llama.cpp's token types.
enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };

absl::StatusOr<const PreTokenizerDefinition*> FindDefinition(const std::string& name) {
  std::vector<std::string> known;
  for (const auto& definition : kDefinitions) {
    if (name == definition.name) return &definition;
    known.emplace_back(definition.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer.ggml.pre \"", absl::Utf8SafeCHexEscape(name),
                   "\" is not supported; known: ", absl::StrJoin(known, ", ")));
}

absl::Status ReadTokens(const GgufVocabulary& vocabulary, TokenizerParts* parts) {
  const size_t count = vocabulary.tokens.size();
  if (count == 0 || count > kMaxVocabulary) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.ggml.tokens has ", count, " tokens; the limits are 1 and ", kMaxVocabulary));
  }
  if (!vocabulary.token_types.empty() && vocabulary.token_types.size() != count) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.token_type has ",
                                                   vocabulary.token_types.size(), " entries for ",
                                                   count, " tokens"));
  }
  absl::flat_hash_set<absl::string_view> seen;
  for (size_t i = 0; i < count; ++i) {
    const std::string& spelling = vocabulary.tokens[i];
    const auto id = static_cast<int32_t>(i);
    if (FindInvalidUtf8(spelling) >= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokenizer.ggml.tokens[", i, "] is not valid UTF-8"));
    }
    // Padded vocabularies repeat filler tokens; the first one is the token.
    if (!seen.insert(spelling).second) continue;
    parts->model.vocabulary.emplace_back(spelling, id);
    const int32_t type = vocabulary.token_types.empty() ? kNormal : vocabulary.token_types[i];
    if ((type == kUnknown || type == kControl || type == kUserDefined) && !spelling.empty()) {
      AddedToken token;
      token.id = id;
      token.content = spelling;
      token.special = type != kUserDefined;
      parts->added_tokens.push_back(std::move(token));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadMerges(const GgufVocabulary& vocabulary, TokenizerParts* parts) {
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    const std::string& text = vocabulary.merges[i];
    const size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.merges[", i, "] is \"",
                                                     absl::Utf8SafeCHexEscape(text.substr(0, 80)),
                                                     "\"; it must be \"LEFT RIGHT\""));
    }
    parts->model.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  return absl::OkStatus();
}

// Adds `id` to `ids` if the file asks for it. `add` and `name` are those of its tokenizer.ggml
// field.
absl::Status AddBoundaryToken(bool add, std::optional<int32_t> id, size_t token_count,
                              const char* name, std::vector<int32_t>* ids) {
  if (!add) return absl::OkStatus();
  if (!id.has_value() || *id < 0 || static_cast<size_t>(*id) >= token_count) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tokenizer.ggml.", name, " is ", id.has_value() ? absl::StrCat(*id) : "missing",
        "; it must be an id from 0 to ", token_count - 1));
  }
  ids->push_back(*id);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerParts> ReadGgufTokenizer(const GgufVocabulary& vocabulary) {
  if (vocabulary.model != "gpt2") {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.model \"",
                                                   absl::Utf8SafeCHexEscape(vocabulary.model),
                                                   "\" is not supported; known: gpt2"));
  }
  ASSIGN_OR_RETURN(const auto* definition, FindDefinition(vocabulary.pre));
  TokenizerParts parts;
  if (definition->nfc) parts.normalizers.push_back(NormalForm::kNfc);
  if (definition->individual_digits) parts.pre_tokenizer.push_back(DigitsStep(true));
  ASSIGN_OR_RETURN(SplitStep split,
                   RegexStep(definition->pattern, SplitBehavior::kIsolated, /*invert=*/false));
  parts.pre_tokenizer.push_back(std::move(split));
  RETURN_IF_ERROR(ReadTokens(vocabulary, &parts));
  RETURN_IF_ERROR(ReadMerges(vocabulary, &parts));
  parts.model.ignore_merges = definition->ignore_merges;
  const size_t count = vocabulary.tokens.size();
  RETURN_IF_ERROR(AddBoundaryToken(vocabulary.add_bos.value_or(definition->add_bos),
                                   vocabulary.bos_id, count, "bos_token_id", &parts.prefix_ids));
  RETURN_IF_ERROR(AddBoundaryToken(vocabulary.add_eos.value_or(false), vocabulary.eos_id, count,
                                   "eos_token_id", &parts.suffix_ids));
  return parts;
}

}  // namespace pergola
