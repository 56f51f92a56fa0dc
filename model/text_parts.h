// The text side of a model, as it lies on disk: what a coordinator needs, and all it reads. The
// directory may hold nothing else. Not for weights (checkpoint.h), not for tokenizing
// (coordinator/text).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/generation_defaults.h"

namespace pergola {

// The vocabulary as GGUF metadata holds it (tokenizer.ggml.*).
struct GgufVocabulary {
  std::string model;                // "gpt2" (byte-level BPE), "llama", "t5", ...
  std::string pre;                  // pre-tokenizer name: "smollm", "llama-bpe", "qwen2", ...
  std::vector<std::string> tokens;  // by id; byte-level tokens in GPT-2's printable alphabet
  std::vector<int32_t>
      token_types;  // llama.cpp's: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte
  std::vector<float> scores;        // by id; of SentencePiece vocabularies
  std::vector<std::string> merges;  // "left right", by rank
  std::optional<int32_t> bos_id, eos_id, unknown_id, padding_id;
  std::optional<bool> add_bos, add_eos;
  std::optional<bool> add_space_prefix, remove_extra_spaces;
  std::string charsmap;  // SentencePiece's compiled normalization rules; may be empty
};

struct TextParts {
  std::string model_name;
  std::string architecture;
  int64_t vocabulary_size = 0;  // rows of the LM head; the tokenizer may know fewer ids
  int64_t context_length = 0;
  std::string tokenizer_json;         // the whole file; empty if the vocabulary comes from GGUF
  std::string tokenizer_config_json;  // may be empty
  std::optional<GgufVocabulary> gguf;
  std::string chat_template;  // may be empty
  GenerationDefaults defaults;
  std::optional<int32_t> bos_id;
  std::string
      hash;  // SHA-256 (hex) of all of the above as stored; equal on coordinator and workers
};

// `path`: a directory or a .gguf file, as for Checkpoint::Open. Errors: one line naming file and
// value.
absl::StatusOr<TextParts> LoadTextParts(const std::string& path);

// What `metadata` says of the vocabulary. INVALID_ARGUMENT naming file and key.
absl::StatusOr<GgufVocabulary> ReadGgufVocabulary(const GgufMetadata& metadata);

// The vocabulary alone, also of a .gguf file that holds nothing else.
absl::StatusOr<GgufVocabulary> LoadGgufVocabulary(const std::string& path);

}  // namespace pergola
