// How a model wants to be sampled unless a request says otherwise: generation_config.json, or what
// older config.json files say of it, or GGUF's general.sampling.*.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/gguf.h"
#include "model/json.h"

namespace pergola {

// Unset: not stated.
struct GenerationDefaults {
  std::vector<int32_t> eos_ids;
  std::optional<bool> do_sample;
  std::optional<float> temperature;
  std::optional<uint32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> typical_p;
  std::optional<float> repetition_penalty;
  std::optional<uint32_t> no_repeat_ngram_size;
  std::optional<uint32_t> max_new_tokens;
  std::optional<uint32_t> max_length;  // prompt and new tokens; max_new_tokens goes before it
  std::optional<uint32_t> min_new_tokens;
  // One line each: what the files ask for that would change the text and is not done.
  std::vector<std::string> ignored;
};

// An id, a list of ids, or null (none).
absl::Status ReadIds(const JsonObject& config, const char* key, std::vector<int32_t>* ids);

// All of generation_config.json. INVALID_ARGUMENT naming the key, value and limit.
absl::Status ReadGenerationConfig(const JsonObject& config, GenerationDefaults* defaults);

// What config.json says where there is no generation_config.json; the end-of-sequence ids are not
// read here.
absl::Status ReadGenerationKeys(const JsonObject& config, GenerationDefaults* defaults);

// What a GGUF file says; the end-of-sequence ids are not read here.
absl::Status ReadGgufSampling(const GgufMetadata& metadata, GenerationDefaults* defaults);

}  // namespace pergola
