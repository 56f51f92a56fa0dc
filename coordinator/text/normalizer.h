// What a tokenizer does to text before it looks for words: a sequence of steps, as tokenizer.json's
// normalizer says.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/charsmap.h"
#include "coordinator/text/normal_form.h"
#include "coordinator/text/pattern.h"

namespace pergola {

struct NormalizerStep {
  enum class Kind {
    kForm,          // `form`
    kLowercase,     // character by character
    kStripAccents,  // marks are left out
    kStrip,         // white space at the `left` and `right` end
    kPrepend,       // `content` before a text that is not empty
    kReplace,       // `pattern` by `content`
    kCharsmap,      // `charsmap`
    kNmt,           // SentencePiece's controls and spaces
  };
  Kind kind = Kind::kForm;
  NormalForm form = NormalForm::kNfc;
  bool left = false;
  bool right = false;
  Pattern pattern;
  std::string content;
  std::unique_ptr<const Charsmap> charsmap;
};

// Immutable; shared by threads.
class Normalizer {
 public:
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}

  bool empty() const { return steps_.empty(); }
  // `text` (valid UTF-8) after all steps. `*front_lost` becomes true if a step took the text's
  // first character away (it is left alone otherwise). RESOURCE_EXHAUSTED if a pattern passes its
  // limits or the text grows beyond kMaxGrowth times its size.
  absl::StatusOr<std::string> Apply(std::string_view text, Regex::Workspace* workspace,
                                    bool* front_lost) const;

  // A text of n bytes has at most kMaxGrowth * (n + kGrowthBase) bytes afterwards: 18 code points
  // for one is Unicode's most (U+FDFA), and a step may prepend.
  static constexpr size_t kMaxGrowth = 32;
  static constexpr size_t kGrowthBase = 1024;

 private:
  std::vector<NormalizerStep> steps_;
};

}  // namespace pergola
