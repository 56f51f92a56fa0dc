#include "model/text_parts.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/limits.h"
#include "base/sha256.h"
#include "base/status.h"
#include "model/family.h"

namespace pergola {
namespace {

using nlohmann::json;

constexpr int64_t kMaxTemplateBytes = 4 << 20;

std::string BaseName(const std::string& path) {
  std::filesystem::path clean = std::filesystem::path(path).lexically_normal();
  if (!clean.has_filename()) clean = clean.parent_path();
  return clean.filename().string();
}

// An absent file reads as nullopt; one that cannot be read is an error.
absl::StatusOr<std::optional<std::string>> ReadOptional(const std::string& path,
                                                        int64_t max_bytes) {
  auto text = ReadWholeFile(path, max_bytes);
  if (text.ok()) return std::optional<std::string>(*std::move(text));
  if (absl::IsNotFound(text.status())) return std::optional<std::string>();
  return text.status();
}

absl::Status ReadSpecialIds(const JsonObject& config, const Family& family, TextParts* parts) {
  if (config.Find("eos_token_id") != nullptr) {
    RETURN_IF_ERROR(ReadIds(config, "eos_token_id", &parts->defaults.eos_ids));
  } else if (family.default_eos_id.has_value()) {
    parts->defaults.eos_ids = {*family.default_eos_id};
  }
  if (config.Find("bos_token_id") == nullptr) {
    parts->bos_id = family.default_bos_id;
    return absl::OkStatus();
  }
  std::vector<int32_t> bos;
  RETURN_IF_ERROR(ReadIds(config, "bos_token_id", &bos));
  if (!bos.empty()) parts->bos_id = bos[0];
  return absl::OkStatus();
}

// tokenizer_config.json's chat_template: a text, or a list of {name, template} of which "default"
// counts.
absl::StatusOr<std::string> TemplateOf(const std::string& text, const std::string& path) {
  if (text.empty()) return std::string();
  ASSIGN_OR_RETURN(const json value, ParseJsonObject(text, path));
  const JsonObject config(value, path);
  const json* found = config.Find("chat_template");
  if (found == nullptr || !found->is_array()) return config.String("chat_template", "");
  for (const json& item : *found) {
    if (!item.is_object()) return config.Wrong("chat_template", "a text or a list of templates");
    const JsonObject entry(item, path + ": chat_template");
    ASSIGN_OR_RETURN(const std::string name, entry.String("name", ""));
    if (name == "default") return entry.String("template", "");
  }
  return std::string();
}

absl::StatusOr<TextParts> LoadHuggingFace(const std::string& path) {
  TextParts parts;
  Sha256 hash;
  const auto read = [&](const char* file,
                        int64_t max) -> absl::StatusOr<std::optional<std::string>> {
    ASSIGN_OR_RETURN(auto text, ReadOptional(absl::StrCat(path, "/", file), max));
    hash.UpdateField(file);
    hash.UpdateField(text.has_value() ? "present" : "absent");
    hash.UpdateField(text.value_or(""));
    return text;
  };
  const std::string config_path = absl::StrCat(path, "/config.json");
  ASSIGN_OR_RETURN(const auto config_text, read("config.json", kMaxConfigBytes));
  if (!config_text) return absl::NotFoundError(absl::StrCat(config_path, ": is missing"));
  ASSIGN_OR_RETURN(const json value, ParseJsonObject(*config_text, config_path));
  const JsonObject config(value, config_path);
  ASSIGN_OR_RETURN(const Family* family, FindHfFamily(config));
  ASSIGN_OR_RETURN(const ModelSpec spec, family->spec_from_hf(config));
  parts.model_name = BaseName(path);
  parts.architecture = spec.architecture;
  parts.vocabulary_size = spec.vocabulary;
  parts.context_length = spec.context_length;
  RETURN_IF_ERROR(ReadSpecialIds(config, *family, &parts));

  ASSIGN_OR_RETURN(const auto generation, read("generation_config.json", kMaxConfigBytes));
  if (generation) {
    const std::string generation_path = path + "/generation_config.json";
    ASSIGN_OR_RETURN(const json settings, ParseJsonObject(*generation, generation_path));
    RETURN_IF_ERROR(ReadGenerationConfig(JsonObject(settings, generation_path), &parts.defaults));
  } else {
    RETURN_IF_ERROR(ReadGenerationKeys(config, &parts.defaults));
  }
  ASSIGN_OR_RETURN(auto tokenizer, read("tokenizer.json", kMaxTokenizerBytes));
  parts.tokenizer_json = std::move(tokenizer).value_or("");
  ASSIGN_OR_RETURN(auto tokenizer_config, read("tokenizer_config.json", kMaxConfigBytes));
  parts.tokenizer_config_json = std::move(tokenizer_config).value_or("");
  ASSIGN_OR_RETURN(auto chat_template, read("chat_template.jinja", kMaxTemplateBytes));
  if (chat_template) {
    parts.chat_template = *std::move(chat_template);
  } else {
    ASSIGN_OR_RETURN(parts.chat_template,
                     TemplateOf(parts.tokenizer_config_json, path + "/tokenizer_config.json"));
  }
  if (parts.chat_template.empty()) {  // what older processors wrote beside the tokenizer
    ASSIGN_OR_RETURN(const auto template_json, read("chat_template.json", kMaxConfigBytes));
    ASSIGN_OR_RETURN(parts.chat_template,
                     TemplateOf(template_json.value_or(""), path + "/chat_template.json"));
  }
  parts.hash = hash.FinishHex();
  return parts;
}

absl::Status ReadVocabularyIds(const GgufMetadata& metadata, GgufVocabulary* vocabulary) {
  const std::pair<const char*, std::optional<int32_t>*> ids[] = {
      {"tokenizer.ggml.bos_token_id", &vocabulary->bos_id},
      {"tokenizer.ggml.eos_token_id", &vocabulary->eos_id},
      {"tokenizer.ggml.unknown_token_id", &vocabulary->unknown_id},
      {"tokenizer.ggml.padding_token_id", &vocabulary->padding_id},
  };
  for (const auto& [key, id] : ids) {
    if (!metadata.Has(key)) continue;
    // Converters write 2^32 - 1 (minus one) for none.
    ASSIGN_OR_RETURN(const int64_t number, metadata.Int(key, 0, -1, UINT32_MAX));
    if (number < 0 || number == UINT32_MAX) continue;
    if (number >= kMaxVocabulary) {
      return absl::InvalidArgumentError(absl::StrCat(metadata.file(), ": ", key, " is ", number,
                                                     ", but must be below ", kMaxVocabulary));
    }
    *id = static_cast<int32_t>(number);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<GgufVocabulary> ReadGgufVocabulary(const GgufMetadata& metadata) {
  GgufVocabulary vocabulary;
  ASSIGN_OR_RETURN(vocabulary.model, metadata.String("tokenizer.ggml.model", ""));
  ASSIGN_OR_RETURN(vocabulary.pre, metadata.String("tokenizer.ggml.pre", ""));
  // Before anything is copied.
  for (const char* key : {"tokenizer.ggml.tokens", "tokenizer.ggml.merges"}) {
    if (metadata.Count(key) <= kMaxVocabulary) continue;
    return absl::InvalidArgumentError(absl::StrCat(metadata.file(), ": ", key, " holds ",
                                                   metadata.Count(key), " entries; at most ",
                                                   kMaxVocabulary, " are read"));
  }
  ASSIGN_OR_RETURN(vocabulary.tokens, metadata.Strings("tokenizer.ggml.tokens"));
  ASSIGN_OR_RETURN(vocabulary.token_types, metadata.Int32s("tokenizer.ggml.token_type"));
  ASSIGN_OR_RETURN(vocabulary.scores, metadata.Floats("tokenizer.ggml.scores"));
  ASSIGN_OR_RETURN(vocabulary.merges, metadata.Strings("tokenizer.ggml.merges"));
  if (!vocabulary.token_types.empty() &&
      vocabulary.token_types.size() != vocabulary.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        metadata.file(), ": tokenizer.ggml.token_type holds ", vocabulary.token_types.size(),
        " types for ", vocabulary.tokens.size(), " tokens"));
  }
  RETURN_IF_ERROR(ReadVocabularyIds(metadata, &vocabulary));
  const std::pair<const char*, std::optional<bool>*> flags[] = {
      {"tokenizer.ggml.add_bos_token", &vocabulary.add_bos},
      {"tokenizer.ggml.add_eos_token", &vocabulary.add_eos},
      {"tokenizer.ggml.add_space_prefix", &vocabulary.add_space_prefix},
      {"tokenizer.ggml.remove_extra_whitespaces", &vocabulary.remove_extra_spaces},
  };
  for (const auto& [key, flag] : flags) {
    if (!metadata.Has(key)) continue;
    ASSIGN_OR_RETURN(*flag, metadata.Bool(key, false));
  }
  ASSIGN_OR_RETURN(const auto charsmap, metadata.Int32s("tokenizer.ggml.precompiled_charsmap"));
  for (const int32_t byte : charsmap) vocabulary.charsmap.push_back(static_cast<char>(byte));
  return vocabulary;
}

namespace {

// End of turn and end of message end an answer as end of text does: for such models
// generation_config.json lists them. Files that name none have a control token of a known name, as
// llama.cpp looks for it.
absl::Status ReadEndIds(const GgufMetadata& metadata, TextParts* parts) {
  static constexpr std::string_view kEndsOfTurn[] = {
      "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>",
      "<EOT>",      "_<EOT>",     "[EOT]",   "<end_of_utterance>"};
  constexpr int32_t kControl = 3;
  const GgufVocabulary& vocabulary = *parts->gguf;
  std::vector<int32_t>& eos = parts->defaults.eos_ids;
  const auto add = [&eos](int64_t id) {
    const auto token = static_cast<int32_t>(id);
    if (id >= 0 && std::find(eos.begin(), eos.end(), token) == eos.end()) eos.push_back(token);
  };
  if (vocabulary.eos_id) add(*vocabulary.eos_id);
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const int64_t id, metadata.Int(key, -1, -1, kMaxVocabulary - 1));
    add(id);
  }
  if (metadata.Has("tokenizer.ggml.eot_token_id") || parts->chat_template.empty()) {
    return absl::OkStatus();
  }
  for (size_t id = 0; id < vocabulary.token_types.size(); ++id) {
    if (vocabulary.token_types[id] != kControl) continue;
    const std::string& token = vocabulary.tokens[id];
    if (std::find(std::begin(kEndsOfTurn), std::end(kEndsOfTurn), token) != std::end(kEndsOfTurn)) {
      add(static_cast<int64_t>(id));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TextParts> LoadGguf(const std::string& path) {
  ASSIGN_OR_RETURN(auto source, OpenFileSource(path));
  TensorTable table;
  ASSIGN_OR_RETURN(const GgufHeader header, AddGguf(std::move(source), &table));
  const GgufMetadata& metadata = header.metadata;
  ASSIGN_OR_RETURN(const Family* family, FindGgufFamily(metadata));
  ASSIGN_OR_RETURN(const ModelSpec spec, family->spec_from_gguf(metadata));
  TextParts parts;
  ASSIGN_OR_RETURN(parts.model_name, metadata.String("general.name", BaseName(path)));
  parts.architecture = spec.architecture;
  parts.vocabulary_size = spec.vocabulary;
  parts.context_length = spec.context_length;
  ASSIGN_OR_RETURN(parts.gguf, ReadGgufVocabulary(metadata));
  ASSIGN_OR_RETURN(parts.chat_template, metadata.String("tokenizer.chat_template", ""));
  parts.bos_id = parts.gguf->bos_id;
  RETURN_IF_ERROR(ReadEndIds(metadata, &parts));
  RETURN_IF_ERROR(ReadGgufSampling(metadata, &parts.defaults));
  parts.hash = header.metadata_bytes_hash;
  return parts;
}

}  // namespace

absl::StatusOr<GgufVocabulary> LoadGgufVocabulary(const std::string& path) {
  ASSIGN_OR_RETURN(auto source, OpenFileSource(path));
  TensorTable table;
  ASSIGN_OR_RETURN(const GgufHeader header, AddGguf(std::move(source), &table));
  return ReadGgufVocabulary(header.metadata);
}

absl::StatusOr<TextParts> LoadTextParts(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  return S_ISDIR(info.st_mode) ? LoadHuggingFace(path) : LoadGguf(path);
}

}  // namespace pergola
