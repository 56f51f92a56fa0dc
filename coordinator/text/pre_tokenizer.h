// Cuts text into the words that BPE encodes one by one, as tokenizer.json's pre_tokenizer says: a
// sequence of steps, the last of them ByteLevel. Words are raw bytes; the printable spelling of
// bytes never appears here.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/regex.h"

namespace pergola {

// What becomes of a match and the text between matches.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  enum class Kind {
    kRegex,        // `regex`
    kString,       // `literal`
    kNumeric,      // characters of categories Nd, Nl, No
    kPrefixSpace,  // no split: a space before a piece that does not begin with one
  };
  Kind kind = Kind::kRegex;
  std::unique_ptr<const Regex> regex;
  std::string literal;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what matched and what did not change places
};

// GPT-2's pattern, which ByteLevel uses unless told otherwise.
extern const char kByteLevelPattern[];

SplitStep DigitsStep(bool individual);
SplitStep PrefixSpaceStep();
// INVALID_ARGUMENT if the pattern is broken.
absl::StatusOr<SplitStep> RegexStep(std::string_view pattern, SplitBehavior behavior, bool invert);

// Immutable; shared by threads.
class PreTokenizer {
 public:
  // Working memory of one thread.
  struct Scratch {
    std::vector<std::string_view> pieces, next_pieces;
    std::vector<std::pair<ByteRange, bool>> matches;
    std::deque<std::string> prefixed;
    Regex::Workspace regex;
  };
  explicit PreTokenizer(std::vector<SplitStep> steps) : steps_(std::move(steps)) {}

  // Leaves the words of `text` (valid UTF-8) in scratch->pieces; none is empty. They point into
  // `text` and scratch.
  absl::Status Split(std::string_view text, Scratch* scratch) const;

 private:
  std::vector<SplitStep> steps_;
};

}  // namespace pergola
