#include "coordinator/text/pre_tokenizer.h"

#include <algorithm>

#include "base/status.h"
#include "coordinator/text/utf8.h"

namespace pergola {

const char kByteLevelPattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// Ranges that cover a piece from left to right, each a match or the text between two.
using Ranges = std::vector<std::pair<ByteRange, bool>>;

void AddMatch(ByteRange match, size_t* covered, Ranges* ranges) {
  if (match.begin > *covered) ranges->push_back({{*covered, match.begin}, false});
  ranges->push_back({match, true});
  *covered = match.end;
}

absl::Status FindRegex(const Regex& regex, std::string_view piece, Regex::Workspace* workspace,
                       Ranges* ranges) {
  Regex::Cursor cursor(regex, piece, workspace);
  size_t covered = 0;
  for (ByteRange match;;) {
    ASSIGN_OR_RETURN(const bool found, cursor.Next(&match));
    if (!found) break;
    AddMatch(match, &covered, ranges);
  }
  if (covered < piece.size()) ranges->push_back({{covered, piece.size()}, false});
  return absl::OkStatus();
}

void FindString(std::string_view literal, std::string_view piece, Ranges* ranges) {
  size_t covered = 0;
  // An empty literal matches nothing.
  for (size_t at; !literal.empty() && (at = piece.find(literal, covered)) != piece.npos;) {
    AddMatch({at, at + literal.size()}, &covered, ranges);
  }
  if (covered < piece.size()) ranges->push_back({{covered, piece.size()}, false});
}

void FindNumeric(std::string_view piece, Ranges* ranges) {
  size_t covered = 0;
  for (size_t position = 0; position < piece.size();) {
    const size_t begin = position;
    if (IsNumeric(NextCodePoint(piece, &position))) AddMatch({begin, position}, &covered, ranges);
  }
  if (covered < piece.size()) ranges->push_back({{covered, piece.size()}, false});
}

// Joins neighbours in place; `joins(previous_is_match, is_match)` says whether a range goes to the
// one before it.
template <typename Joins>
void JoinRanges(const Joins& joins, Ranges* ranges) {
  size_t count = 0;
  bool previous_is_match = false;
  for (const auto& [range, is_match] : *ranges) {
    if (count > 0 && joins(previous_is_match, is_match)) {
      (*ranges)[count - 1].first.end = range.end;
    } else {
      (*ranges)[count++] = {range, false};
    }
    previous_is_match = is_match;
  }
  ranges->resize(count);
}

// After it, a range marked as match is to be left out.
void ApplyBehavior(SplitBehavior behavior, Ranges* ranges) {
  switch (behavior) {
    case SplitBehavior::kRemoved:
      return;
    case SplitBehavior::kIsolated:
      for (auto& range : *ranges) range.second = false;
      return;
    case SplitBehavior::kContiguous:
      return JoinRanges([](bool previous, bool current) { return previous == current; }, ranges);
    case SplitBehavior::kMergedWithPrevious:
      return JoinRanges([](bool previous, bool current) { return current && !previous; }, ranges);
    case SplitBehavior::kMergedWithNext:
      // From the right, a match goes to the range behind it unless that is a match too.
      std::reverse(ranges->begin(), ranges->end());
      for (auto& range : *ranges) std::swap(range.first.begin, range.first.end);
      JoinRanges([](bool previous, bool current) { return current && !previous; }, ranges);
      for (auto& range : *ranges) std::swap(range.first.begin, range.first.end);
      std::reverse(ranges->begin(), ranges->end());
      return;
  }
}

bool IsOneCharacter(std::string_view piece) {
  size_t end = 0;
  NextCodePoint(piece, &end);
  return end == piece.size();
}

absl::Status SplitPiece(const SplitStep& step, std::string_view piece,
                        PreTokenizer::Scratch* scratch) {
  if (step.kind == SplitStep::Kind::kPrefixSpace) {
    if (piece.front() != ' ') {
      scratch->prefixed.push_back(absl::StrCat(" ", ToAbsl(piece)));
      piece = scratch->prefixed.back();
    }
    scratch->next_pieces.push_back(piece);
    return absl::OkStatus();
  }
  // Isolating cannot cut one character, and Digits leaves many of them.
  if (step.behavior == SplitBehavior::kIsolated && IsOneCharacter(piece)) {
    scratch->next_pieces.push_back(piece);
    return absl::OkStatus();
  }
  Ranges& ranges = scratch->matches;
  ranges.clear();
  if (step.kind == SplitStep::Kind::kRegex) {
    RETURN_IF_ERROR(FindRegex(*step.regex, piece, &scratch->regex, &ranges));
  } else if (step.kind == SplitStep::Kind::kString) {
    FindString(step.literal, piece, &ranges);
  } else {
    FindNumeric(piece, &ranges);
  }
  if (step.invert) {
    for (auto& range : ranges) range.second = !range.second;
  }
  ApplyBehavior(step.behavior, &ranges);
  for (const auto& [range, removed] : ranges) {
    if (removed || range.begin == range.end) continue;
    scratch->next_pieces.push_back(piece.substr(range.begin, range.end - range.begin));
  }
  return absl::OkStatus();
}

}  // namespace

SplitStep DigitsStep(bool individual) {
  SplitStep step;
  step.kind = SplitStep::Kind::kNumeric;
  step.behavior = individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
  return step;
}

SplitStep PrefixSpaceStep() {
  SplitStep step;
  step.kind = SplitStep::Kind::kPrefixSpace;
  return step;
}

absl::StatusOr<SplitStep> RegexStep(std::string_view pattern, SplitBehavior behavior, bool invert) {
  SplitStep step;
  ASSIGN_OR_RETURN(step.regex, Regex::Create(pattern));
  step.behavior = behavior;
  step.invert = invert;
  return step;
}

absl::Status PreTokenizer::Split(std::string_view text, Scratch* scratch) const {
  scratch->pieces.clear();
  scratch->prefixed.clear();
  if (!text.empty()) scratch->pieces.push_back(text);
  for (const SplitStep& step : steps_) {
    scratch->next_pieces.clear();
    for (const std::string_view piece : scratch->pieces) {
      RETURN_IF_ERROR(SplitPiece(step, piece, scratch));
    }
    scratch->pieces.swap(scratch->next_pieces);
  }
  return absl::OkStatus();
}

}  // namespace pergola
