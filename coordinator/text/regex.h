// Oniguruma patterns over UTF-8, with the syntax and options that Hugging Face tokenizers uses, and
// with limits: a pattern from an untrusted file ends in an error, never in a hang or an overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/text/ascii_pattern.h"

// Oniguruma's OnigRegexType, OnigRegion and OnigMatchParam.
struct re_pattern_buffer;
struct re_registers;
struct OnigMatchParamStruct;

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

  // What a search needs beside the pattern. One thread; made once and used for any number of texts.
  class Workspace {
   public:
    Workspace();
    ~Workspace();
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    // Bounds the backtracking of all searches together from now on: linear in `text_bytes`.
    void Begin(size_t text_bytes);

   private:
    friend class Regex;
    // Runs one search: an Oniguruma position or error. Charges what it cost.
    int Search(const Regex& regex, std::string_view text, size_t position);
    re_registers* region_;          // owned
    OnigMatchParamStruct* limits_;  // owned
    uint64_t budget_;               // steps back that are left
  };

  // Walks over the matches in a text from left to right. One thread.
  class Cursor {
   public:
    // All are borrowed; `text` is valid UTF-8.
    Cursor(const Regex& regex, std::string_view text, Workspace* workspace)
        : regex_(regex), text_(text), workspace_(workspace) {}
    // True with the next match in `*match`, false at the end. An empty match right behind the last
    // match is passed over. RESOURCE_EXHAUSTED if the search passes its limit.
    absl::StatusOr<bool> Next(ByteRange* match);

   private:
    const Regex& regex_;
    std::string_view text_;
    Workspace* workspace_;
    size_t position_ = 0;
    bool matched_ = false;
    size_t last_match_end_ = 0;
  };

 private:
  explicit Regex(re_pattern_buffer* compiled) : compiled_(compiled) {}
  re_pattern_buffer* compiled_;  // owned
  // Three times as fast, where it can be used.
  std::optional<AsciiPattern> shortcut_;
};

}  // namespace pergola
