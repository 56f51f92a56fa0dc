// Cuts text into the words that the model encodes one by one, as tokenizer.json's pre_tokenizer
// says: a sequence of steps. Where the last of them is ByteLevel, words are raw bytes and the
// printable spelling of bytes never appears here.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/pattern.h"

namespace pergola {

// What becomes of a match and the text between matches.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct SplitStep {
  enum class Kind {
    kPattern,      // `pattern`
    kCharacters,   // characters for which `matches` is true
    kPrefixSpace,  // no split: a space before a piece that does not begin with one
    kMetaspace,    // `content` for spaces and, as `prepend` says, before a piece without one
    kSpellBytes,   // no split: bytes in GPT-2's alphabet
  };
  // Which pieces get a prefix: none, the one at the beginning of the text, or all.
  enum class Prepend { kNever, kFirst, kAlways };
  Kind kind = Kind::kPattern;
  Pattern pattern;
  bool (*matches)(char32_t) = nullptr;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what matched and what did not change places
  std::string content;
  Prepend prepend = Prepend::kAlways;
  bool split = true;  // kMetaspace: before each `content`
};

// GPT-2's pattern, which ByteLevel uses unless told otherwise.
extern const char kByteLevelPattern[];

SplitStep StepOfKind(SplitStep::Kind kind);
SplitStep CharactersStep(bool (*matches)(char32_t), SplitBehavior behavior);
SplitStep DigitsStep(bool individual);
// INVALID_ARGUMENT if the pattern is broken.
absl::StatusOr<SplitStep> RegexStep(std::string_view pattern, SplitBehavior behavior, bool invert);

// Immutable; shared by threads.
class PreTokenizer {
 public:
  // Working memory of one thread.
  struct Scratch {
    std::vector<std::string_view> pieces, next_pieces;
    Ranges ranges;
    std::deque<std::string> rewritten;
    Regex::Workspace regex;
  };
  explicit PreTokenizer(std::vector<SplitStep> steps) : steps_(std::move(steps)) {}

  // Leaves the words of `text` (valid UTF-8) in scratch->pieces; none is empty. They point into
  // `text` and scratch. `at_front`: the text begins where the user's text does.
  absl::Status Split(std::string_view text, bool at_front, Scratch* scratch) const;

 private:
  std::vector<SplitStep> steps_;
};

}  // namespace pergola
