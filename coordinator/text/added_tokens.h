// Tokens that are found in the text before everything else: special tokens and words added to a
// vocabulary.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/trie.h"

namespace pergola {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // not shown
  bool normalized = false;   // looked for in the normalized text
  bool left_strip = false;   // takes the white space before it
  bool right_strip = false;  // takes the white space behind it
  bool single_word = false;  // only where no word character touches it
};

// Finds a set of tokens in text, the leftmost first, then the longest. Immutable; shared by
// threads.
class AddedTokenFinder {
 public:
  // A piece of text: an added token, or with id -1 what lies between them.
  struct Segment {
    std::string_view text;
    int32_t id = -1;
  };

  // Every content is non-empty.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);
  // Appends the segments of `text` (valid UTF-8), none of them empty but tokens'.
  void Split(std::string_view text, std::vector<Segment>* segments) const;

 private:
  // The longest token that `text` begins with, or -1.
  int32_t LongestAt(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  Trie trie_;  // of their contents, by index
};

}  // namespace pergola
