// A template's text as tokens, with whitespace control already applied: trim_blocks and
// lstrip_blocks are on, one line feed at the end of the template is dropped. Not for grammar
// (parser.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/jinja/value.h"

namespace pergola::jinja {

enum class TokenType : uint8_t {
  kData,
  kBlockBegin,
  kBlockEnd,
  kVariableBegin,
  kVariableEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type = TokenType::kEnd;
  int line = 1;
  std::string text;  // of data, a name, a string (unescaped) or an operator
  Value number;      // of an integer or a float
};

// The tokens, the last one kEnd; or INVALID_ARGUMENT "line N: ...". `source` is valid UTF-8.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

// "line N: what".
absl::Status TemplateError(int line, std::string_view what);

}  // namespace pergola::jinja
