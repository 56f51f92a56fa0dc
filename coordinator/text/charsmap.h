// SentencePiece's compiled normalization rules ("precompiled charsmap"): a double-array trie
// (Aoe, IEEE Transactions on Software Engineering 15(9), 1989) from strings to their replacements.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace pergola {

// Immutable; shared by threads.
class Charsmap {
 public:
  // `blob`: the trie's size in bytes (little endian, 32 bits), the trie, the replacements, each
  // ended by a zero byte. INVALID_ARGUMENT if the sizes do not fit or a replacement is not UTF-8.
  static absl::StatusOr<Charsmap> Create(std::string_view blob);

  // The text (valid UTF-8) with every grapheme of at most five bytes, or else every character,
  // replaced as Hugging Face tokenizers does it: a rule for the beginning of a grapheme takes all
  // of it.
  std::string Apply(std::string_view text) const;

 private:
  // The replacement of the shortest beginning of `text` that has one.
  std::optional<std::string_view> Find(std::string_view text) const;
  void ApplyToGrapheme(std::string_view grapheme, std::string* out) const;

  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace pergola
