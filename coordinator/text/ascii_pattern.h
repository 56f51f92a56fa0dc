// A shortcut for the patterns that published tokenizers split with: alternatives of character sets
// with a count each, matched in text that is ASCII where the match is. It finds what the regular
// expression would, or says that it cannot tell. Not for anything else of regular expressions.
#pragma once

#include <bitset>
#include <cstddef>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

namespace pergola {

using AsciiSet = std::bitset<128>;

// Immutable; shared by threads.
class AsciiPattern {
 public:
  // The ASCII characters that a pattern for one character matches; nothing if it is broken.
  using MembersOf = std::function<std::optional<AsciiSet>(std::string_view, bool ignore_case)>;

  // Nothing if `pattern` has a part that this does not know, such as a group or an anchor.
  static std::optional<AsciiPattern> Create(std::string_view pattern, const MembersOf& members_of);

  // The end of the match that begins at the first place from `*begin` on where one does, which goes
  // to *begin. Nothing if that depends on characters outside ASCII or takes more than kMaxSteps.
  std::optional<size_t> Find(std::string_view text, size_t* begin) const;

  static constexpr int kMaxSteps = 256;

 private:
  struct Item {
    AsciiSet set;
    size_t min = 1;
    size_t max = 1;
    bool gives_back = true;  // takes fewer if what follows does not match otherwise
    bool negative_lookahead = false;
  };
  struct Alternative {
    std::vector<Item> items;
    AsciiSet starts;  // what a match can begin with
  };
  class Parser;
  class Matcher;
  std::vector<Alternative> alternatives_;
};

}  // namespace pergola
