// What a tokenizer's steps look for in text: a string or a regular expression.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/regex.h"

namespace pergola {

// Ranges that cover a text from left to right, each a match (true) or the text between two.
using Ranges = std::vector<std::pair<ByteRange, bool>>;

void AddMatch(ByteRange match, size_t* covered, Ranges* ranges);

// Immutable; shared by threads.
struct Pattern {
  std::unique_ptr<const Regex> regex;  // null: `literal`
  std::string literal;                 // an empty one matches nothing

  // INVALID_ARGUMENT if `pattern` is broken.
  static absl::StatusOr<Pattern> OfRegex(std::string_view pattern);
  static Pattern OfString(std::string literal);

  // Leaves the ranges of `text` (valid UTF-8). RESOURCE_EXHAUSTED if a search passes its limits.
  absl::Status FindAll(std::string_view text, Regex::Workspace* workspace, Ranges* ranges) const;
};

}  // namespace pergola
