// Everything that defines a tokenizer, read from either of the two formats that carry one. Both
// readers refuse, by name and value, what they cannot honour exactly.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/decoder.h"
#include "coordinator/text/normalizer.h"
#include "coordinator/text/pre_tokenizer.h"
#include "coordinator/text/unigram.h"
#include "model/text_parts.h"

namespace pergola {

struct TokenizerParts {
  std::vector<NormalizerStep> normalizer;
  std::vector<SplitStep> pre_tokenizer;
  std::variant<BpeParts, UnigramParts> model;
  std::vector<DecoderStep> decoder;
  std::vector<AddedToken> added_tokens;  // ids may be the vocabulary's
  std::vector<int32_t> prefix_ids;       // what add_special_tokens puts before the text
  std::vector<int32_t> suffix_ids;
};

// A Hugging Face tokenizer.json. INVALID_ARGUMENT naming the field and value.
absl::StatusOr<TokenizerParts> ReadTokenizerJson(std::string_view json);

// The tokenizer.ggml.* metadata of a GGUF file. INVALID_ARGUMENT naming the field and value.
absl::StatusOr<TokenizerParts> ReadGgufTokenizer(const GgufVocabulary& vocabulary);

}  // namespace pergola
