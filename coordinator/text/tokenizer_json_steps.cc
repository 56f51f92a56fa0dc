// tokenizer.json's normalizer, pre-tokenizer, decoder and post-processor.
#include "absl/strings/escaping.h"
#include "base/limits.h"
#include "base/status.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/tokenizer_json.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

using nlohmann::json;

// The one character of a field.
absl::StatusOr<std::string> ReadCharacter(const JsonFields& fields, const char* name) {
  ASSIGN_OR_RETURN(std::string text, fields.String(name));
  size_t end = 0;
  if (!text.empty()) NextCodePoint(text, &end);
  if (text.empty() || end != text.size()) {
    return WrongValue(fields.PathOf(name), text, "one character");
  }
  return text;
}

absl::StatusOr<uint64_t> ReadCount(const JsonFields& fields, const char* name) {
  const json* value = fields.Find(name);
  if (value == nullptr || !value->is_number_unsigned()) {
    return WrongValue(fields.PathOf(name), value == nullptr ? json() : *value, "a count");
  }
  return value->get<uint64_t>();
}

// What Replace looks for: unlike Split it may not look for nothing.
absl::StatusOr<Pattern> ReadReplacedPattern(const JsonFields& fields) {
  ASSIGN_OR_RETURN(Pattern pattern, ReadPattern(fields));
  if (pattern.regex == nullptr && pattern.literal.empty()) {
    return NotSupported(fields.PathOf("pattern.String"), "");
  }
  return pattern;
}

absl::StatusOr<std::string> DecodeBase64(const JsonFields& fields, const char* name) {
  ASSIGN_OR_RETURN(const std::string text, fields.String(name));
  std::string bytes;
  if (!absl::Base64Unescape(text, &bytes)) {
    return WrongValue(fields.PathOf(name), text, "base64");
  }
  return bytes;
}

absl::StatusOr<NormalizerStep> ReadNormalizerStep(const JsonFields& fields,
                                                  const std::string& type) {
  using Kind = NormalizerStep::Kind;
  NormalizerStep step;
  const std::pair<const char*, NormalForm> forms[] = {{"NFC", NormalForm::kNfc},
                                                      {"NFD", NormalForm::kNfd},
                                                      {"NFKC", NormalForm::kNfkc},
                                                      {"NFKD", NormalForm::kNfkd}};
  for (const auto& [name, form] : forms) {
    if (type != name) continue;
    step.form = form;
    return step;
  }
  if (type == "Lowercase") {
    step.kind = Kind::kLowercase;
  } else if (type == "StripAccents") {
    step.kind = Kind::kStripAccents;
  } else if (type == "Nmt") {
    step.kind = Kind::kNmt;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    ASSIGN_OR_RETURN(step.left, fields.Bool("strip_left", true));
    ASSIGN_OR_RETURN(step.right, fields.Bool("strip_right", true));
  } else if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    ASSIGN_OR_RETURN(step.content, fields.String("prepend"));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    ASSIGN_OR_RETURN(step.pattern, ReadReplacedPattern(fields));
    ASSIGN_OR_RETURN(step.content, fields.String("content"));
  } else if (type == "Precompiled") {
    step.kind = Kind::kCharsmap;
    ASSIGN_OR_RETURN(const std::string blob, DecodeBase64(fields, "precompiled_charsmap"));
    absl::StatusOr<Charsmap> map = Charsmap::Create(blob);
    if (!map.ok()) return Prefixed(map.status(), fields.path());
    step.charsmap = std::make_unique<const Charsmap>(*std::move(map));
  } else {
    return NotSupported(fields.PathOf("type"), type);
  }
  return step;
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

// Whether the first piece, each piece or none gets the replacement before it. Old files say
// add_prefix_space instead.
absl::StatusOr<SplitStep::Prepend> ReadPrepend(const JsonFields& fields) {
  ASSIGN_OR_RETURN(const auto scheme, fields.OptionalString("prepend_scheme"));
  const std::string name = scheme.value_or("always");
  ASSIGN_OR_RETURN(const bool adds, fields.Bool("add_prefix_space", true));
  if (!adds && name != "never") return NotSupported(fields.PathOf("add_prefix_space"), false);
  if (name == "always") return SplitStep::Prepend::kAlways;
  if (name == "first") return SplitStep::Prepend::kFirst;
  if (name == "never") return SplitStep::Prepend::kNever;
  return NotSupported(fields.PathOf("prepend_scheme"), name);
}

absl::Status AddByteLevel(const JsonFields& fields, std::vector<SplitStep>* steps) {
  ASSIGN_OR_RETURN(const bool add_prefix_space, fields.Bool("add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, fields.Bool("use_regex", true));
  if (add_prefix_space) steps->push_back(StepOfKind(SplitStep::Kind::kPrefixSpace));
  if (use_regex) {
    ASSIGN_OR_RETURN(SplitStep step,
                     RegexStep(kByteLevelPattern, SplitBehavior::kIsolated, /*invert=*/false));
    steps->push_back(std::move(step));
  }
  return absl::OkStatus();
}

absl::Status AddSplit(const JsonFields& fields, std::vector<SplitStep>* steps) {
  SplitStep step;
  ASSIGN_OR_RETURN(step.behavior, ReadBehavior(fields));
  ASSIGN_OR_RETURN(step.invert, fields.Bool("invert", false));
  ASSIGN_OR_RETURN(step.pattern, ReadPattern(fields));
  steps->push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status AddMetaspace(const JsonFields& fields, std::vector<SplitStep>* steps) {
  SplitStep step = StepOfKind(SplitStep::Kind::kMetaspace);
  ASSIGN_OR_RETURN(step.content, ReadCharacter(fields, "replacement"));
  ASSIGN_OR_RETURN(step.prepend, ReadPrepend(fields));
  ASSIGN_OR_RETURN(step.split, fields.Bool("split", true));
  steps->push_back(std::move(step));
  return absl::OkStatus();
}

// All but ByteLevel.
absl::Status AddPreTokenizerStep(const JsonFields& fields, const std::string& type,
                                 std::vector<SplitStep>* steps) {
  if (type == "Split") return AddSplit(fields, steps);
  if (type == "Metaspace") return AddMetaspace(fields, steps);
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool individual, fields.Bool("individual_digits", false));
    steps->push_back(DigitsStep(individual));
  } else if (type == "Punctuation") {
    SplitBehavior behavior = SplitBehavior::kIsolated;
    if (fields.Find("behavior") != nullptr) {
      ASSIGN_OR_RETURN(behavior, ReadBehavior(fields));
    }
    steps->push_back(CharactersStep(IsPunctuation, behavior));
  } else if (type == "WhitespaceSplit" || type == "Whitespace" || type == "BertPreTokenizer") {
    steps->push_back(CharactersStep(IsWhitespace, SplitBehavior::kRemoved));
    if (type == "Whitespace") {
      steps->push_back(CharactersStep(IsWordCharacter, SplitBehavior::kContiguous));
    } else if (type == "BertPreTokenizer") {
      steps->push_back(CharactersStep(IsPunctuation, SplitBehavior::kIsolated));
    }
  } else if (type == "CharDelimiterSplit") {
    ASSIGN_OR_RETURN(std::string delimiter, ReadCharacter(fields, "delimiter"));
    SplitStep step;
    step.pattern = Pattern::OfString(std::move(delimiter));
    step.behavior = SplitBehavior::kRemoved;
    steps->push_back(std::move(step));
  } else {
    return NotSupported(fields.PathOf("type"), type);
  }
  return absl::OkStatus();
}

absl::StatusOr<DecoderStep> ReadDecoderStep(const JsonFields& fields, const std::string& type) {
  using Kind = DecoderStep::Kind;
  DecoderStep step;
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    ASSIGN_OR_RETURN(step.content, ReadCharacter(fields, "content"));
    ASSIGN_OR_RETURN(step.start, ReadCount(fields, "start"));
    ASSIGN_OR_RETURN(step.stop, ReadCount(fields, "stop"));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    ASSIGN_OR_RETURN(step.pattern, ReadReplacedPattern(fields));
    ASSIGN_OR_RETURN(step.content, fields.String("content"));
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    ASSIGN_OR_RETURN(step.content, ReadCharacter(fields, "replacement"));
    ASSIGN_OR_RETURN(const SplitStep::Prepend prepend, ReadPrepend(fields));
    step.start = prepend == SplitStep::Prepend::kNever ? 0 : 1;
  } else if (type == "BPEDecoder") {
    step.kind = Kind::kEndSuffix;
    ASSIGN_OR_RETURN(step.content, fields.String("suffix"));
    if (step.content.empty()) return NotSupported(fields.PathOf("suffix"), "");
  } else {
    return NotSupported(fields.PathOf("type"), type);
  }
  return step;
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

// A field ["TOKEN", ID].
absl::StatusOr<int32_t> ReadNamedId(const JsonFields& fields, const char* name) {
  ASSIGN_OR_RETURN(const json* pair, fields.Array(name));
  if (pair->size() != 2) return WrongValue(fields.PathOf(name), *pair, "[\"TOKEN\", ID]");
  return JsonId((*pair)[1], fields.PathOf(name));
}

// RobertaProcessing and BertProcessing: one token on each side.
absl::Status ReadSides(const JsonFields& fields, TokenizerParts* parts) {
  ASSIGN_OR_RETURN(const int32_t first, ReadNamedId(fields, "cls"));
  ASSIGN_OR_RETURN(const int32_t last, ReadNamedId(fields, "sep"));
  parts->prefix_ids.insert(parts->prefix_ids.begin(), first);
  parts->suffix_ids.push_back(last);
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadPostProcessor(const json* value, TokenizerParts* parts) {
  const auto read = [parts](const JsonFields& fields, const std::string& type) -> absl::Status {
    if (type == "TemplateProcessing") return ReadTemplate(fields, parts);
    if (type == "RobertaProcessing" || type == "BertProcessing") return ReadSides(fields, parts);
    // ByteLevel here changes offsets only.
    return type == "ByteLevel" ? absl::OkStatus() : NotSupported(fields.PathOf("type"), type);
  };
  return ForEachStep(value, "post_processor", "processors", read);
}

absl::StatusOr<Pattern> ReadPattern(const JsonFields& fields) {
  const json* value = fields.Find("pattern");
  if (value == nullptr) return fields.String("pattern").status();
  ASSIGN_OR_RETURN(const JsonFields pattern, JsonFields::Of(*value, fields.PathOf("pattern")));
  ASSIGN_OR_RETURN(const std::optional<std::string> regex, pattern.OptionalString("Regex"));
  if (regex.has_value()) {
    absl::StatusOr<Pattern> made = Pattern::OfRegex(*regex);
    if (!made.ok()) return Prefixed(made.status(), pattern.PathOf("Regex"));
    return made;
  }
  ASSIGN_OR_RETURN(std::string literal, pattern.String("String"));
  return Pattern::OfString(std::move(literal));
}

absl::Status ReadNormalizer(const json* value, TokenizerParts* parts) {
  const auto read = [parts](const JsonFields& fields, const std::string& type) -> absl::Status {
    ASSIGN_OR_RETURN(NormalizerStep step, ReadNormalizerStep(fields, type));
    parts->normalizer.push_back(std::move(step));
    return absl::OkStatus();
  };
  return ForEachStep(value, "normalizer", "normalizers", read);
}

absl::Status ReadPreTokenizer(const json* value, TokenizerParts* parts, bool* ends_in_bytes) {
  auto* steps = &parts->pre_tokenizer;
  *ends_in_bytes = false;
  const auto read = [steps, ends_in_bytes](const JsonFields& fields,
                                           const std::string& type) -> absl::Status {
    // What follows ByteLevel sees the spelling of bytes.
    if (*ends_in_bytes) steps->push_back(StepOfKind(SplitStep::Kind::kSpellBytes));
    *ends_in_bytes = type == "ByteLevel";
    return *ends_in_bytes ? AddByteLevel(fields, steps) : AddPreTokenizerStep(fields, type, steps);
  };
  return ForEachStep(value, "pre_tokenizer", "pretokenizers", read);
}

absl::Status ReadDecoder(const json* value, TokenizerParts* parts) {
  const auto read = [parts](const JsonFields& fields, const std::string& type) -> absl::Status {
    ASSIGN_OR_RETURN(DecoderStep step, ReadDecoderStep(fields, type));
    parts->decoder.push_back(std::move(step));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(ForEachStep(value, "decoder", "decoders", read));
  if (value == nullptr || value->is_null()) {
    // Without a decoder Hugging Face joins tokens with spaces.
    parts->decoder.emplace_back().kind = DecoderStep::Kind::kJoinSpaces;
  }
  return absl::OkStatus();
}

}  // namespace pergola
