// tokenizer.json: the file, its model and its added tokens. `truncation` and `padding` are not
// read: they are what a training script left behind, and transformers resets them too.
#include "coordinator/text/tokenizer_json.h"

#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "base/limits.h"
#include "base/status.h"
#include "model/json.h"

namespace pergola {
namespace {

using nlohmann::json;

constexpr size_t kMaxAddedTokenBytes = 1024;

std::string VocabularyPath(const std::string& spelling) {
  return absl::StrCat("model.vocab[\"", absl::Utf8SafeCHexEscape(spelling), "\"]");
}

absl::Status ReadVocabulary(const JsonFields& model, BpeParts* parts) {
  const json* vocabulary = model.Find("vocab");
  if (vocabulary == nullptr || !vocabulary->is_object()) {
    return WrongValue("model.vocab", vocabulary == nullptr ? json() : *vocabulary, "an object");
  }
  if (vocabulary->size() > kMaxVocabulary) {
    return absl::InvalidArgumentError(absl::StrCat("model.vocab has ", vocabulary->size(),
                                                   " tokens; the limit is ", kMaxVocabulary));
  }
  absl::flat_hash_set<int32_t> used;
  for (const auto& [spelling, value] : vocabulary->items()) {
    const absl::StatusOr<int32_t> id = JsonId(value, "");
    if (!id.ok()) return JsonId(value, VocabularyPath(spelling)).status();
    if (!used.insert(*id).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(VocabularyPath(spelling), " has id ", *id, ", which another token has too"));
    }
    parts->vocabulary.emplace_back(spelling, *id);
  }
  return absl::OkStatus();
}

// A merge is "left right" or ["left", "right"].
absl::Status ReadMerge(const json& value, const std::string& path, BpeParts* parts) {
  constexpr char kWanted[] = "\"LEFT RIGHT\" or [\"LEFT\", \"RIGHT\"]";
  if (value.is_array()) {
    if (value.size() != 2 || !value[0].is_string() || !value[1].is_string()) {
      return WrongValue(path, value, kWanted);
    }
    parts->merges.emplace_back(value[0].get<std::string>(), value[1].get<std::string>());
    return absl::OkStatus();
  }
  if (!value.is_string()) return WrongValue(path, value, kWanted);
  const auto& text = value.get_ref<const std::string&>();
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
    return WrongValue(path, value, kWanted);
  }
  parts->merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadAffix(const JsonFields& model, const char* name) {
  ASSIGN_OR_RETURN(auto affix, model.OptionalString(name));
  return std::move(affix).value_or("");
}

absl::Status ReadBpe(const JsonFields& model, BpeParts* parts) {
  const json* dropout = model.Find("dropout");
  if (dropout != nullptr && *dropout != 0.0) return NotSupported("model.dropout", *dropout);
  RETURN_IF_ERROR(ReadVocabulary(model, parts));
  ASSIGN_OR_RETURN(const json* merges, model.Array("merges"));
  if (merges->size() > kMaxVocabulary) {
    return absl::InvalidArgumentError(absl::StrCat("model.merges has ", merges->size(),
                                                   " merges; the limit is ", kMaxVocabulary));
  }
  for (size_t i = 0; i < merges->size(); ++i) {
    RETURN_IF_ERROR(ReadMerge((*merges)[i], absl::StrCat("model.merges[", i, "]"), parts));
  }
  ASSIGN_OR_RETURN(parts->ignore_merges, model.Bool("ignore_merges", false));
  ASSIGN_OR_RETURN(parts->byte_fallback, model.Bool("byte_fallback", false));
  ASSIGN_OR_RETURN(parts->fuse_unknown, model.Bool("fuse_unk", false));
  ASSIGN_OR_RETURN(parts->unknown_token, model.OptionalString("unk_token"));
  ASSIGN_OR_RETURN(parts->continuing_prefix, ReadAffix(model, "continuing_subword_prefix"));
  ASSIGN_OR_RETURN(parts->end_suffix, ReadAffix(model, "end_of_word_suffix"));
  return absl::OkStatus();
}

// A piece is ["SPELLING", SCORE].
absl::Status ReadUnigram(const JsonFields& model, UnigramParts* parts) {
  ASSIGN_OR_RETURN(const json* pieces, model.Array("vocab"));
  if (pieces->size() > kMaxVocabulary) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.vocab has ", pieces->size(), " tokens; the limit is ", kMaxVocabulary));
  }
  for (size_t i = 0; i < pieces->size(); ++i) {
    const json& piece = (*pieces)[i];
    if (!piece.is_array() || piece.size() != 2 || !piece[0].is_string() || !piece[1].is_number()) {
      return WrongValue(absl::StrCat("model.vocab[", i, "]"), piece, "[\"SPELLING\", SCORE]");
    }
    parts->pieces.push_back({piece[0].get<std::string>(), piece[1].get<double>()});
  }
  ASSIGN_OR_RETURN(parts->byte_fallback, model.Bool("byte_fallback", false));
  if (model.Find("unk_id") == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(parts->unknown_id, model.Id("unk_id"));
  return absl::OkStatus();
}

absl::Status ReadModel(const json* value, TokenizerParts* parts) {
  if (value == nullptr) return absl::InvalidArgumentError("model is missing");
  ASSIGN_OR_RETURN(const JsonFields model, JsonFields::Of(*value, "model"));
  // Old files name no type; a vocabulary with merges is BPE.
  ASSIGN_OR_RETURN(const std::optional<std::string> type, model.OptionalString("type"));
  if (type == "Unigram") return ReadUnigram(model, &parts->model.emplace<UnigramParts>());
  if (type.has_value() && *type != "BPE") return NotSupported("model.type", *type);
  return ReadBpe(model, &parts->model.emplace<BpeParts>());
}

absl::StatusOr<AddedToken> ReadAddedToken(const json& value, const std::string& path) {
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(value, path));
  AddedToken token;
  ASSIGN_OR_RETURN(token.id, fields.Id("id"));
  ASSIGN_OR_RETURN(token.content, fields.String("content"));
  if (token.content.size() > kMaxAddedTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat(fields.PathOf("content"), " has ",
                                                   token.content.size(), " bytes; the limit is ",
                                                   kMaxAddedTokenBytes));
  }
  ASSIGN_OR_RETURN(token.special, fields.Bool("special", false));
  ASSIGN_OR_RETURN(token.normalized, fields.Bool("normalized", !token.special));
  ASSIGN_OR_RETURN(token.left_strip, fields.Bool("lstrip", false));
  ASSIGN_OR_RETURN(token.right_strip, fields.Bool("rstrip", false));
  ASSIGN_OR_RETURN(token.single_word, fields.Bool("single_word", false));
  return token;
}

absl::Status ReadAddedTokens(const JsonFields& root, TokenizerParts* parts) {
  if (root.Find("added_tokens") == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const json* tokens, root.Array("added_tokens"));
  if (tokens->size() > kMaxVocabulary) {
    return absl::InvalidArgumentError(absl::StrCat("added_tokens has ", tokens->size(),
                                                   " tokens; the limit is ", kMaxVocabulary));
  }
  for (size_t i = 0; i < tokens->size(); ++i) {
    ASSIGN_OR_RETURN(AddedToken token,
                     ReadAddedToken((*tokens)[i], absl::StrCat("added_tokens[", i, "]")));
    parts->added_tokens.push_back(std::move(token));
  }
  return absl::OkStatus();
}

// What the last step is decides what words are. Models that look into the spelling of words get it
// spelled out.
void SetWordForm(bool ends_in_bytes, TokenizerParts* parts) {
  auto* bpe = std::get_if<BpeParts>(&parts->model);
  const bool takes_bytes = bpe != nullptr && !bpe->byte_fallback &&
                           bpe->continuing_prefix.empty() && bpe->end_suffix.empty();
  if (bpe != nullptr) bpe->words_are_bytes = ends_in_bytes && takes_bytes;
  if (ends_in_bytes && !takes_bytes) {
    parts->pre_tokenizer.push_back(StepOfKind(SplitStep::Kind::kSpellBytes));
  }
}

// Metaspace's "first" asks where a piece began in the user's text. What Prepend put there began
// nowhere, and once other steps have cut it Hugging Face finds several pieces first.
absl::Status CheckFirst(const TokenizerParts& parts) {
  const bool prepends = std::any_of(
      parts.normalizer.begin(), parts.normalizer.end(),
      [](const NormalizerStep& step) { return step.kind == NormalizerStep::Kind::kPrepend; });
  for (size_t i = 1; prepends && i < parts.pre_tokenizer.size(); ++i) {
    const SplitStep& step = parts.pre_tokenizer[i];
    if (step.kind != SplitStep::Kind::kMetaspace) continue;
    if (step.prepend != SplitStep::Prepend::kFirst) continue;
    return absl::InvalidArgumentError(
        "pre_tokenizer: Metaspace with prepend_scheme \"first\" behind another step is not "
        "supported with the normalizer Prepend");
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenizerParts> ReadDocument(const json& document) {
  ASSIGN_OR_RETURN(const JsonFields root, JsonFields::Of(document, ""));
  TokenizerParts parts;
  bool ends_in_bytes = false;
  RETURN_IF_ERROR(ReadModel(root.Find("model"), &parts));
  RETURN_IF_ERROR(ReadNormalizer(root.Find("normalizer"), &parts));
  RETURN_IF_ERROR(ReadPreTokenizer(root.Find("pre_tokenizer"), &parts, &ends_in_bytes));
  RETURN_IF_ERROR(CheckFirst(parts));
  SetWordForm(ends_in_bytes, &parts);
  RETURN_IF_ERROR(ReadPostProcessor(root.Find("post_processor"), &parts));
  RETURN_IF_ERROR(ReadDecoder(root.Find("decoder"), &parts));
  RETURN_IF_ERROR(ReadAddedTokens(root, &parts));
  return parts;
}

}  // namespace

absl::StatusOr<TokenizerParts> ReadTokenizerJson(std::string_view text) {
  ASSIGN_OR_RETURN(const json document, ParseJson(text, "tokenizer.json"));
  absl::StatusOr<TokenizerParts> parts = ReadDocument(document);
  if (!parts.ok()) return Prefixed(parts.status(), "tokenizer.json");
  return parts;
}

}  // namespace pergola
