#include "coordinator/text/regex.h"

#include <oniguruma.h>

#include "absl/strings/escaping.h"
#include "base/status.h"

namespace pergola {
namespace {

// Published patterns have under 500 bytes.
constexpr size_t kMaxPatternBytes = 16 << 10;
// A greedy run pushes one entry per character and the longest text has 4 Mi of them.
constexpr unsigned kMaxMatchStack = 6U << 20;
// Published patterns go back at most a few times per byte of a 4 MiB text; exponential ones pass
// this in a second.
constexpr unsigned long kMaxRetries = 64UL << 20;

const OnigUChar* Bytes(const char* text) {
  return reinterpret_cast<const OnigUChar*>(text);
}

std::string Explain(int code, const OnigErrorInfo* info) {
  OnigUChar buffer[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int length = info == nullptr ? onig_error_code_to_str(buffer, code)
                                     : onig_error_code_to_str(buffer, code, info);
  return {reinterpret_cast<const char*>(buffer), static_cast<size_t>(length)};
}

// The library has process-wide tables that must be made once, before threads share it.
bool InitializeOnce() {
  static const bool ready = [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    return onig_initialize(encodings, 1) == ONIG_NORMAL;
  }();
  return ready;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Regex>> Regex::Create(std::string_view pattern) {
  if (!InitializeOnce()) return absl::InternalError("Oniguruma cannot be initialized");
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("pattern has ", pattern.size(), " bytes; the limit is ", kMaxPatternBytes));
  }
  regex_t* compiled = nullptr;
  OnigErrorInfo info;
  const int code =
      onig_new(&compiled, Bytes(pattern.data()), Bytes(pattern.data() + pattern.size()),
               ONIG_OPTION_NONE, ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, &info);
  if (code != ONIG_NORMAL) {
    return absl::InvalidArgumentError(absl::StrCat("pattern \"", absl::CHexEscape(ToAbsl(pattern)),
                                                   "\" is broken: ", Explain(code, &info)));
  }
  return std::unique_ptr<const Regex>(new Regex(compiled));
}

Regex::~Regex() {
  onig_free(compiled_);
}

Regex::Workspace::Workspace() : region_(onig_region_new()), limits_(onig_new_match_param()) {
  onig_initialize_match_param(limits_);
  onig_set_match_stack_limit_size_of_match_param(limits_, kMaxMatchStack);
  onig_set_retry_limit_in_match_of_match_param(limits_, kMaxRetries);
  onig_set_retry_limit_in_search_of_match_param(limits_, kMaxRetries);
}

Regex::Workspace::~Workspace() {
  onig_region_free(region_, 1);
  onig_free_match_param(limits_);
}

absl::StatusOr<bool> Regex::Cursor::Next(ByteRange* match) {
  // At the end only the empty match right behind the last one is left, which would be passed over.
  if (matched_ && last_match_end_ == text_.size()) return false;
  const OnigUChar* begin = Bytes(text_.data());
  const OnigUChar* end = begin + text_.size();
  while (position_ <= text_.size()) {
    const int found =
        onig_search_with_param(regex_.compiled_, begin, end, begin + position_, end,
                               workspace_->region_, ONIG_OPTION_NONE, workspace_->limits_);
    if (found == ONIG_MISMATCH) break;
    if (found < 0) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "searching a text of ", text_.size(),
          " bytes with the pre-tokenizer's pattern failed: ", Explain(found, nullptr)));
    }
    match->begin = static_cast<size_t>(workspace_->region_->beg[0]);
    match->end = static_cast<size_t>(workspace_->region_->end[0]);
    // A pattern must not be able to make us read outside the text, whatever \K does in this
    // version.
    if (match->begin > match->end || match->begin < position_) {
      return absl::InvalidArgumentError(
          "the pre-tokenizer's pattern matches a range that runs back");
    }
    if (match->begin == match->end && matched_ && match->end == last_match_end_) {
      // The same place again: move on by one character.
      ++position_;
      while (position_ < text_.size() && (text_[position_] & 0xC0) == 0x80) ++position_;
      continue;
    }
    position_ = match->end;
    last_match_end_ = match->end;
    matched_ = true;
    return true;
  }
  position_ = text_.size() + 1;
  return false;
}

}  // namespace pergola
