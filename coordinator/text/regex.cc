#include "coordinator/text/regex.h"

#include <oniguruma.h>

#include "absl/strings/escaping.h"
#include "base/status.h"

namespace pergola {
namespace {

// Published patterns have under 1000 bytes. Oniguruma takes up to 3000 bytes of memory for one.
constexpr size_t kMaxPatternBytes = 4 << 10;
// A greedy run pushes one entry per character and the longest text has 4 Mi of them.
constexpr unsigned kMaxMatchStack = 6U << 20;
// A text may take kRetriesPerByte steps back per byte and kFreeRetries more; a search of up to
// kCheapRetries is free. Published patterns go back at most a few times per byte; exponential and
// quadratic ones pass this within seconds, whatever the text's size.
constexpr uint64_t kRetriesPerByte = 64;
constexpr uint64_t kFreeRetries = 1U << 20;
constexpr uint64_t kCheapRetries = 256;
// Oniguruma does not say how many steps a search took, only that it passed a limit: the limit is
// raised by this factor until it suffices.
constexpr uint64_t kRaise = 8;

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

int Compile(std::string_view pattern, OnigOptionType options, regex_t** compiled,
            OnigErrorInfo* info) {
  return onig_new(compiled, Bytes(pattern.data()), Bytes(pattern.data() + pattern.size()), options,
                  ONIG_ENCODING_UTF8, ONIG_SYNTAX_DEFAULT, info);
}

std::optional<AsciiSet> AsciiMembers(std::string_view atom, bool ignore_case) {
  regex_t* compiled = nullptr;
  OnigErrorInfo info;
  const OnigOptionType options = ignore_case ? ONIG_OPTION_IGNORECASE : ONIG_OPTION_NONE;
  if (Compile(atom, options, &compiled, &info) != ONIG_NORMAL) return std::nullopt;
  AsciiSet members;
  for (size_t i = 0; i < members.size(); ++i) {
    const auto byte = static_cast<OnigUChar>(i);
    members[i] = onig_match(compiled, &byte, &byte + 1, &byte, nullptr, ONIG_OPTION_NONE) == 1;
  }
  onig_free(compiled);
  return members;
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
  const int code = Compile(pattern, ONIG_OPTION_NONE, &compiled, &info);
  if (code != ONIG_NORMAL) {
    return absl::InvalidArgumentError(absl::StrCat("pattern \"", absl::CHexEscape(ToAbsl(pattern)),
                                                   "\" is broken: ", Explain(code, &info)));
  }
  std::unique_ptr<Regex> regex(new Regex(compiled));
  regex->shortcut_ = AsciiPattern::Create(pattern, AsciiMembers);
  return std::unique_ptr<const Regex>(std::move(regex));
}

Regex::~Regex() {
  onig_free(compiled_);
}

Regex::Workspace::Workspace() : region_(onig_region_new()), limits_(onig_new_match_param()) {
  onig_initialize_match_param(limits_);
  onig_set_match_stack_limit_size_of_match_param(limits_, kMaxMatchStack);
  Begin(0);
}

Regex::Workspace::~Workspace() {
  onig_region_free(region_, 1);
  onig_free_match_param(limits_);
}

void Regex::Workspace::Begin(size_t text_bytes) {
  budget_ = kFreeRetries + kRetriesPerByte * text_bytes;
}

int Regex::Workspace::Search(const Regex& regex, std::string_view text, size_t position) {
  const OnigUChar* begin = Bytes(text.data());
  const OnigUChar* end = begin + text.size();
  for (uint64_t limit = kCheapRetries;; limit *= kRaise) {
    onig_set_retry_limit_in_match_of_match_param(limits_, limit);
    onig_set_retry_limit_in_search_of_match_param(limits_, limit);
    const int found = onig_search_with_param(regex.compiled_, begin, end, begin + position, end,
                                             region_, ONIG_OPTION_NONE, limits_);
    const bool over =
        found == ONIGERR_RETRY_LIMIT_IN_MATCH_OVER || found == ONIGERR_RETRY_LIMIT_IN_SEARCH_OVER;
    if (!over) return found;
    if (limit > budget_) return found;
    budget_ -= limit;
  }
}

absl::StatusOr<bool> Regex::Cursor::Next(ByteRange* match) {
  // At the end only the empty match right behind the last one is left, which would be passed over.
  if (matched_ && last_match_end_ == text_.size()) return false;
  if (regex_.shortcut_.has_value()) {
    match->begin = position_;
    if (const auto end = regex_.shortcut_->Find(text_, &match->begin)) {
      match->end = position_ = last_match_end_ = *end;
      matched_ = true;
      return true;
    }
  }
  while (position_ <= text_.size()) {
    const int found = workspace_->Search(regex_, text_, position_);
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
