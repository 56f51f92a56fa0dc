// tokenizer.json, as far as byte-level BPE needs it. `truncation` and `padding` are not read: they
// are what a training script left behind, and transformers resets them too.
#include <algorithm>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/text/json_fields.h"
#include "coordinator/text/tokenizer_parts.h"

namespace pergola {
namespace {

using nlohmann::json;

// Published files nest 7 deep; the bound keeps recursion small.
constexpr int kMaxDepth = 32;
// Published pre-tokenizers have up to 6 steps.
constexpr size_t kMaxSteps = 64;
constexpr size_t kMaxAddedTokenBytes = 1024;

absl::Status CheckDepth(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      in_string = c != '"';
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) {
        return absl::InvalidArgumentError(
            absl::StrCat("nests deeper than ", kMaxDepth, " at byte ", i));
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<json> Parse(std::string_view text) {
  RETURN_IF_ERROR(CheckDepth(text));
  try {
    return json::parse(text);
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("not valid JSON: ", e.what()));
  }
}

// Calls `read(fields, type)` for `value`, or for each element of a Sequence in turn; null is
// nothing. `list` names the Sequence's field.
template <typename Read>
absl::Status ForEachStep(const json* value, const std::string& path, const char* list,
                         const Read& read) {
  if (value == nullptr || value->is_null()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(*value, path));
  ASSIGN_OR_RETURN(const std::string type, fields.String("type"));
  if (type != "Sequence") return read(fields, type);
  ASSIGN_OR_RETURN(const json* steps, fields.Array(list));
  if (steps->size() > kMaxSteps) {
    return absl::InvalidArgumentError(absl::StrCat(fields.PathOf(list), " has ", steps->size(),
                                                   " steps; the limit is ", kMaxSteps));
  }
  for (size_t i = 0; i < steps->size(); ++i) {
    const std::string step_path = absl::StrCat(fields.PathOf(list), "[", i, "]");
    RETURN_IF_ERROR(ForEachStep(&(*steps)[i], step_path, list, read));
  }
  return absl::OkStatus();
}

absl::Status ReadNormalizer(const json* value, TokenizerParts* parts) {
  const auto read = [parts](const JsonFields& fields, const std::string& type) {
    if (type == "NFC") {
      parts->normalizers.push_back(NormalForm::kNfc);
    } else if (type == "NFD") {
      parts->normalizers.push_back(NormalForm::kNfd);
    } else if (type == "NFKC") {
      parts->normalizers.push_back(NormalForm::kNfkc);
    } else if (type == "NFKD") {
      parts->normalizers.push_back(NormalForm::kNfkd);
    } else {
      return NotSupported(fields.PathOf("type"), type);
    }
    return absl::OkStatus();
  };
  return ForEachStep(value, "normalizer", "normalizers", read);
}

absl::StatusOr<SplitBehavior> ReadBehavior(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const std::string name, fields.String("behavior"));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return NotSupported(fields.PathOf("behavior"), name);
}

absl::StatusOr<SplitStep> ReadSplit(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const SplitBehavior behavior, ReadBehavior(fields));
  ASSIGN_OR_RETURN(const bool invert, fields.Bool("invert", false));
  const json* value = fields.Find("pattern");
  if (value == nullptr) return fields.String("pattern").status();
  ASSIGN_OR_RETURN(const JsonFields pattern, JsonFields::Of(*value, fields.PathOf("pattern")));
  ASSIGN_OR_RETURN(const std::optional<std::string> regex, pattern.OptionalString("Regex"));
  if (regex.has_value()) {
    absl::StatusOr<SplitStep> step = RegexStep(*regex, behavior, invert);
    if (!step.ok()) return Prefixed(step.status(), pattern.PathOf("Regex"));
    return step;
  }
  SplitStep step;
  step.kind = SplitStep::Kind::kString;
  ASSIGN_OR_RETURN(step.literal, pattern.String("String"));
  step.behavior = behavior;
  step.invert = invert;
  return step;
}

absl::Status AddByteLevel(const JsonFields& fields, std::vector<SplitStep>* steps) {
  ASSIGN_OR_RETURN(const bool add_prefix_space, fields.Bool("add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, fields.Bool("use_regex", true));
  if (add_prefix_space) steps->push_back(PrefixSpaceStep());
  if (use_regex) {
    ASSIGN_OR_RETURN(SplitStep step,
                     RegexStep(kByteLevelPattern, SplitBehavior::kIsolated, /*invert=*/false));
    steps->push_back(std::move(step));
  }
  return absl::OkStatus();
}

absl::Status ReadPreTokenizer(const json* value, TokenizerParts* parts) {
  bool byte_level = false;
  const auto read = [&](const JsonFields& fields, const std::string& type) -> absl::Status {
    if (byte_level) {
      return absl::InvalidArgumentError(
          absl::StrCat(fields.PathOf("type"), " \"", type, "\" after ByteLevel is not supported"));
    }
    if (type == "ByteLevel") {
      byte_level = true;
      return AddByteLevel(fields, &parts->pre_tokenizer);
    }
    if (type == "Split") {
      ASSIGN_OR_RETURN(SplitStep step, ReadSplit(fields));
      parts->pre_tokenizer.push_back(std::move(step));
      return absl::OkStatus();
    }
    if (type == "Digits") {
      ASSIGN_OR_RETURN(const bool individual, fields.Bool("individual_digits", false));
      parts->pre_tokenizer.push_back(DigitsStep(individual));
      return absl::OkStatus();
    }
    return NotSupported(fields.PathOf("type"), type);
  };
  RETURN_IF_ERROR(ForEachStep(value, "pre_tokenizer", "pretokenizers", read));
  if (byte_level) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "pre_tokenizer has no ByteLevel; only byte-level tokenizers are supported");
}

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

// Features of BPE that change ids and that no byte-level model uses.
absl::Status RefuseModelExtras(const JsonFields& model) {
  ASSIGN_OR_RETURN(const bool byte_fallback, model.Bool("byte_fallback", false));
  if (byte_fallback) return NotSupported("model.byte_fallback", true);
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    ASSIGN_OR_RETURN(const auto affix, model.OptionalString(name));
    if (affix.has_value() && !affix->empty()) return NotSupported(model.PathOf(name), *affix);
  }
  const json* dropout = model.Find("dropout");
  if (dropout != nullptr && *dropout != 0.0) return NotSupported("model.dropout", *dropout);
  return absl::OkStatus();
}

absl::Status ReadModel(const json* value, BpeParts* parts) {
  if (value == nullptr) return absl::InvalidArgumentError("model is missing");
  ASSIGN_OR_RETURN(const JsonFields model, JsonFields::Of(*value, "model"));
  // Old files name no type; a vocabulary with merges is BPE.
  ASSIGN_OR_RETURN(const std::optional<std::string> type, model.OptionalString("type"));
  if (type.has_value() && *type != "BPE") return NotSupported("model.type", *type);
  RETURN_IF_ERROR(RefuseModelExtras(model));
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
  ASSIGN_OR_RETURN(parts->fuse_unknown, model.Bool("fuse_unk", false));
  ASSIGN_OR_RETURN(parts->unknown_token, model.OptionalString("unk_token"));
  return absl::OkStatus();
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

// One piece of a template: the text itself (nothing), or the ids of a special token.
absl::StatusOr<std::optional<std::vector<int32_t>>> ReadTemplatePiece(const json& value,
                                                                      const std::string& path,
                                                                      const JsonFields& processor) {
  ASSIGN_OR_RETURN(const JsonFields piece, JsonFields::Of(value, path));
  if (const json* sequence = piece.Find("Sequence")) {
    ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(*sequence, piece.PathOf("Sequence")));
    ASSIGN_OR_RETURN(const std::string id, fields.String("id"));
    if (id != "A") return NotSupported(fields.PathOf("id"), id);
    return std::optional<std::vector<int32_t>>();
  }
  const json* special = piece.Find("SpecialToken");
  if (special == nullptr) return WrongValue(path, value, "a Sequence or a SpecialToken");
  ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(*special, piece.PathOf("SpecialToken")));
  ASSIGN_OR_RETURN(const std::string name, fields.String("id"));
  const json* all = processor.Find("special_tokens");
  const json* entry =
      all != nullptr && all->is_object() && all->contains(name) ? &(*all)[name] : nullptr;
  if (entry == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(fields.PathOf("id"), " \"",
                                                   absl::Utf8SafeCHexEscape(name), "\" is not in ",
                                                   processor.PathOf("special_tokens")));
  }
  ASSIGN_OR_RETURN(const JsonFields token,
                   JsonFields::Of(*entry, processor.PathOf("special_tokens")));
  ASSIGN_OR_RETURN(const json* list, token.Array("ids"));
  std::vector<int32_t> ids;
  for (const json& id : *list) {
    ids.emplace_back();
    ASSIGN_OR_RETURN(ids.back(), JsonId(id, token.PathOf("ids")));
  }
  return std::optional<std::vector<int32_t>>(std::move(ids));
}

absl::Status ReadTemplate(const JsonFields& processor, TokenizerParts* parts) {
  ASSIGN_OR_RETURN(const json* single, processor.Array("single"));
  if (single->size() > kMaxSteps) {
    return absl::InvalidArgumentError(absl::StrCat(
        processor.PathOf("single"), " has ", single->size(), " pieces; the limit is ", kMaxSteps));
  }
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
  int sequences = 0;
  for (size_t i = 0; i < single->size(); ++i) {
    const std::string path = absl::StrCat(processor.PathOf("single"), "[", i, "]");
    ASSIGN_OR_RETURN(const auto ids, ReadTemplatePiece((*single)[i], path, processor));
    if (!ids.has_value()) {
      ++sequences;
      continue;
    }
    auto& side = sequences == 0 ? prefix : suffix;
    side.insert(side.end(), ids->begin(), ids->end());
  }
  if (sequences != 1) {
    return absl::InvalidArgumentError(absl::StrCat(processor.PathOf("single"), " has the text ",
                                                   sequences, " times; it must have it once"));
  }
  // A later processor of a Sequence wraps what the earlier ones made.
  parts->prefix_ids.insert(parts->prefix_ids.begin(), prefix.begin(), prefix.end());
  parts->suffix_ids.insert(parts->suffix_ids.end(), suffix.begin(), suffix.end());
  return absl::OkStatus();
}

absl::Status ReadPostProcessor(const json* value, TokenizerParts* parts) {
  const auto read = [parts](const JsonFields& fields, const std::string& type) -> absl::Status {
    if (type == "TemplateProcessing") return ReadTemplate(fields, parts);
    // ByteLevel here changes offsets only.
    return type == "ByteLevel" ? absl::OkStatus() : NotSupported(fields.PathOf("type"), type);
  };
  return ForEachStep(value, "post_processor", "processors", read);
}

absl::Status CheckDecoder(const json* value) {
  int byte_levels = 0;
  const auto read = [&](const JsonFields& fields, const std::string& type) -> absl::Status {
    // Fuse behind ByteLevel joins what is one string already.
    if (type == "Fuse" && byte_levels == 1) return absl::OkStatus();
    if (type != "ByteLevel" || byte_levels > 0) return NotSupported(fields.PathOf("type"), type);
    ++byte_levels;
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(ForEachStep(value, "decoder", "decoders", read));
  if (byte_levels == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "decoder has no ByteLevel; only byte-level tokenizers are supported");
}

}  // namespace

absl::StatusOr<TokenizerParts> ReadTokenizerJson(std::string_view text) {
  ASSIGN_OR_RETURN(const json document, Parse(text));
  ASSIGN_OR_RETURN(const JsonFields root, JsonFields::Of(document, ""));
  TokenizerParts parts;
  RETURN_IF_ERROR(ReadModel(root.Find("model"), &parts.model));
  RETURN_IF_ERROR(ReadNormalizer(root.Find("normalizer"), &parts));
  RETURN_IF_ERROR(ReadPreTokenizer(root.Find("pre_tokenizer"), &parts));
  RETURN_IF_ERROR(ReadPostProcessor(root.Find("post_processor"), &parts));
  RETURN_IF_ERROR(CheckDecoder(root.Find("decoder")));
  RETURN_IF_ERROR(ReadAddedTokens(root, &parts));
  return parts;
}

}  // namespace pergola
