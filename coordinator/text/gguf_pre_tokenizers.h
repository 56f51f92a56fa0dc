// GGUF only names the pre-tokenizer of a byte-level vocabulary; here each name has its definition.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace pergola {

struct GgufPreTokenizer {
  std::vector<const char*> names;     // tokenizer.ggml.pre
  std::vector<const char*> patterns;  // one after the other, each isolated
  bool individual_digits = false;     // Digits before the patterns
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // what a file without tokenizer.ggml.add_bos_token means
  bool falcon = false;   // runs of punctuation before the patterns, and on the spelling of bytes
                         // afterwards: digits, then threes of them
};

// INVALID_ARGUMENT naming the known ones.
absl::StatusOr<const GgufPreTokenizer*> FindGgufPreTokenizer(const std::string& name);

}  // namespace pergola
