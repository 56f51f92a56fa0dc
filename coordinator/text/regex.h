// Oniguruma patterns over UTF-8, with the syntax and options that Hugging Face tokenizers uses, and
// with limits: a pattern from an untrusted file ends in an error, never in a hang or an overflow.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct re_pattern_buffer;  // OnigRegexType

namespace pergola {

struct ByteRange {
  size_t begin = 0;
  size_t end = 0;
};

// Immutable; shared by threads.
class Regex {
 public:
  // INVALID_ARGUMENT with Oniguruma's words.
  static absl::StatusOr<std::unique_ptr<const Regex>> Create(std::string_view pattern);
  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

  // Walks over the matches in a text from left to right. One thread.
  class Cursor {
   public:
    // `regex` and `text` (valid UTF-8) are borrowed.
    Cursor(const Regex& regex, std::string_view text);
    ~Cursor();
    Cursor(const Cursor&) = delete;
    Cursor& operator=(const Cursor&) = delete;
    // True with the next match in `*match`, false at the end. An empty match right behind the last
    // match is passed over. RESOURCE_EXHAUSTED if the search passes its limit.
    absl::StatusOr<bool> Next(ByteRange* match);

   private:
    struct State;
    const Regex& regex_;
    std::string_view text_;
    size_t position_ = 0;
    bool matched_ = false;
    size_t last_match_end_ = 0;
    std::unique_ptr<State> state_;
  };

 private:
  explicit Regex(re_pattern_buffer* compiled) : compiled_(compiled) {}
  re_pattern_buffer* compiled_;  // owned
};

}  // namespace pergola
