#include "model/generation_defaults.h"

#include <algorithm>
#include <string_view>

#include "base/limits.h"
#include "base/status.h"

namespace pergola {
namespace {

using nlohmann::json;

constexpr int64_t kMaxEosIds = 64;
// What Hugging Face's generate has where a model samples and states no top_k; transformers 4 even
// left it out of the files it wrote.
constexpr uint32_t kUnstatedTopK = 50;
constexpr size_t kMaxIgnored = 64;

// Change the text if they are not at the value that does nothing, and cannot be honoured.
struct Unsupported {
  std::string_view key;
  double neutral = 0;  // beside null, false and what is empty
};
constexpr Unsupported kUnsupported[] = {
    {"bad_words_ids"},
    {"begin_suppress_tokens"},
    {"constraints"},
    {"diversity_penalty"},
    {"dola_layers"},
    {"encoder_no_repeat_ngram_size"},
    {"encoder_repetition_penalty", 1},
    {"epsilon_cutoff"},
    {"eta_cutoff"},
    {"exponential_decay_length_penalty"},
    {"force_words_ids"},
    {"forced_bos_token_id"},
    {"forced_decoder_ids"},
    {"forced_eos_token_id"},
    {"guidance_scale", 1},
    {"max_time"},
    {"min_length"},
    {"num_beam_groups", 1},
    {"num_beams", 1},
    {"num_return_sequences", 1},
    {"penalty_alpha"},
    {"renormalize_logits"},
    {"sequence_bias"},
    {"stop_strings"},
    {"suppress_tokens"},
    {"token_healing"},
    {"top_h"},
    {"watermarking_config"},
};

// Honoured, or without influence on the text of a decoder.
constexpr std::string_view kKnown[] = {
    "_from_model_config",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "chat_format",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "max_cache_len",
    "max_length",
    "max_matching_ngram_size",
    "max_new_tokens",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "speculation_type",
    "target_lookbehind",
    "temperature",
    "top_k",
    "top_p",
    "transformers_version",
    "typical_p",
    "use_cache",
    "use_mtp",
};

bool DoesNothing(const json& value, double neutral) {
  if (value.is_number()) return value.get<double>() == neutral;
  return value.is_null() || value == false ||
         (value.is_string() && value.get_ref<const std::string&>().empty()) ||
         (value.is_structured() && value.empty());
}

void Ignore(std::string line, GenerationDefaults* defaults) {
  if (defaults->ignored.size() < kMaxIgnored) defaults->ignored.push_back(std::move(line));
}

// What is left out is said; an unknown key may be anything.
void NoteIgnored(const JsonObject& config, bool all_keys, GenerationDefaults* defaults) {
  for (const auto& [key, value] : config.value().items()) {
    const auto unsupported = std::find_if(
        std::begin(kUnsupported), std::end(kUnsupported),
        [name = std::string_view(key)](const Unsupported& u) { return u.key == name; });
    const bool listed = unsupported != std::end(kUnsupported);
    if (DoesNothing(value, listed ? unsupported->neutral : 0)) continue;
    const bool known = std::find(std::begin(kKnown), std::end(kKnown), key) != std::end(kKnown);
    if (known || (!listed && !all_keys)) continue;
    Ignore(absl::StrCat(config.where(), ": ", Printable(key), " is ", JsonText(value),
                        ", which is not supported and left out"),
           defaults);
  }
}

// A number up to `max`; stays unset where the file does not state one.
absl::Status ReadFloat(const JsonObject& config, std::string_view key, float max,
                       std::optional<float>* value) {
  if (!config.Has(key)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const double number, config.Number(key, 0, 0, static_cast<double>(max)));
  *value = static_cast<float>(number);
  return absl::OkStatus();
}

absl::Status ReadCount(const JsonObject& config, std::string_view key, int64_t max,
                       std::optional<uint32_t>* value) {
  if (!config.Has(key)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const int64_t number, config.Int(key, 0, 0, max));
  *value = static_cast<uint32_t>(number);
  return absl::OkStatus();
}

// 0 is what some files have for "not stated".
absl::Status ReadLength(const JsonObject& config, std::string_view key,
                        std::optional<uint32_t>* value) {
  RETURN_IF_ERROR(ReadCount(config, key, INT32_MAX, value));
  if (*value == 0U) value->reset();
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadIds(const JsonObject& config, const char* key, std::vector<int32_t>* ids) {
  const json* value = config.Find(key);
  ids->clear();
  if (value == nullptr || value->is_null()) return absl::OkStatus();
  const std::string wanted = absl::StrCat("an id or a list of at most ", kMaxEosIds,
                                          " ids from 0 to ", kMaxVocabulary - 1);
  if (value->is_array() && value->size() > static_cast<size_t>(kMaxEosIds)) {
    return config.Wrong(key, wanted);
  }
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& item : list) {
    const auto* id = item.get_ptr<const json::number_unsigned_t*>();
    if (id == nullptr || *id >= kMaxVocabulary) return config.Wrong(key, wanted);
    ids->push_back(static_cast<int32_t>(*id));
  }
  return absl::OkStatus();
}

absl::Status ReadGenerationKeys(const JsonObject& config, GenerationDefaults* defaults) {
  if (config.Has("do_sample")) {
    ASSIGN_OR_RETURN(defaults->do_sample, config.Bool("do_sample", false));
  }
  RETURN_IF_ERROR(ReadFloat(config, "temperature", kMaxTemperature, &defaults->temperature));
  RETURN_IF_ERROR(ReadCount(config, "top_k", kMaxVocabulary, &defaults->top_k));
  RETURN_IF_ERROR(ReadFloat(config, "top_p", 1, &defaults->top_p));
  RETURN_IF_ERROR(ReadFloat(config, "min_p", 1, &defaults->min_p));
  RETURN_IF_ERROR(ReadFloat(config, "typical_p", 1, &defaults->typical_p));
  RETURN_IF_ERROR(
      ReadFloat(config, "repetition_penalty", kMaxPenalty, &defaults->repetition_penalty));
  RETURN_IF_ERROR(
      ReadCount(config, "no_repeat_ngram_size", INT32_MAX, &defaults->no_repeat_ngram_size));
  RETURN_IF_ERROR(ReadLength(config, "max_new_tokens", &defaults->max_new_tokens));
  RETURN_IF_ERROR(ReadLength(config, "max_length", &defaults->max_length));
  RETURN_IF_ERROR(ReadLength(config, "min_new_tokens", &defaults->min_new_tokens));
  if (defaults->do_sample.value_or(false) && !defaults->top_k) defaults->top_k = kUnstatedTopK;
  NoteIgnored(config, /*all_keys=*/false, defaults);
  return absl::OkStatus();
}

absl::Status ReadGenerationConfig(const JsonObject& config, GenerationDefaults* defaults) {
  // The file replaces config.json's ids also when it has none: transformers then never stops by
  // itself.
  RETURN_IF_ERROR(ReadIds(config, "eos_token_id", &defaults->eos_ids));
  RETURN_IF_ERROR(ReadGenerationKeys(config, defaults));
  defaults->ignored.clear();
  NoteIgnored(config, /*all_keys=*/true, defaults);
  return absl::OkStatus();
}

absl::Status ReadGgufSampling(const GgufMetadata& metadata, GenerationDefaults* defaults) {
  const std::string prefix = "general.sampling.";
  const struct {
    const char* key;
    double max;
    std::optional<float>* value;
  } numbers[] = {
      {"temp", kMaxTemperature, &defaults->temperature},
      {"top_p", 1, &defaults->top_p},
      {"min_p", 1, &defaults->min_p},
      {"penalty_repeat", kMaxPenalty, &defaults->repetition_penalty},
  };
  for (const auto& number : numbers) {
    if (!metadata.Has(prefix + number.key)) continue;
    ASSIGN_OR_RETURN(const double value, metadata.Number(prefix + number.key, 0, 0, number.max));
    *number.value = static_cast<float>(value);
  }
  if (metadata.Has(prefix + "top_k")) {
    // llama.cpp takes 0 and less for no limit.
    ASSIGN_OR_RETURN(const int64_t top_k, metadata.Int(prefix + "top_k", 0, INT32_MIN, INT32_MAX));
    defaults->top_k = static_cast<uint32_t>(std::clamp<int64_t>(top_k, 0, kMaxVocabulary));
  }
  if (defaults->temperature || defaults->top_k || defaults->top_p || defaults->min_p) {
    defaults->do_sample = defaults->temperature.value_or(1.0F) > 0;
  }
  for (const char* key : {"sequence", "xtc_probability", "xtc_threshold", "penalty_last_n",
                          "mirostat", "mirostat_tau", "mirostat_eta"}) {
    if (!metadata.Has(prefix + key)) continue;
    Ignore(absl::StrCat(metadata.file(), ": ", prefix, key, " is not supported and left out"),
           defaults);
  }
  return absl::OkStatus();
}

}  // namespace pergola
