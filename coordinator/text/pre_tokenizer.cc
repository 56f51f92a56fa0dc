#include "coordinator/text/pre_tokenizer.h"

#include <algorithm>

#include "base/status.h"
#include "coordinator/text/byte_level.h"
#include "coordinator/text/utf8.h"

namespace pergola {

const char kByteLevelPattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

void FindCharacters(const SplitStep& step, std::string_view piece, Ranges* ranges) {
  ranges->clear();
  size_t covered = 0;
  for (size_t position = 0; position < piece.size();) {
    const size_t begin = position;
    if (step.matches(NextCodePoint(piece, &position))) {
      AddMatch({begin, position}, &covered, ranges);
    }
  }
  if (covered < piece.size()) ranges->push_back({{covered, piece.size()}, false});
}

// Cuts before each `content`; a piece that begins with one begins with a cut.
void FindStarts(std::string_view content, std::string_view piece, Ranges* ranges) {
  ranges->clear();
  size_t begin = 0;
  for (size_t at = 0; (at = piece.find(content, at)) != piece.npos; at += content.size()) {
    if (at > begin) ranges->push_back({{begin, at}, false});
    begin = at;
  }
  ranges->push_back({{begin, piece.size()}, false});
}

// Joins neighbours in place; `joins(previous_is_match, is_match)` says whether a range goes to the
// one before it.
template <typename Joins>
void JoinRanges(const Joins& joins, Ranges* ranges) {
  size_t count = 0;
  bool previous_is_match = false;
  for (size_t i = 0; i < ranges->size(); ++i) {
    const auto [range, is_match] = (*ranges)[i];  // copies: their place may be written over
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

std::string_view Keep(std::string text, PreTokenizer::Scratch* scratch) {
  scratch->rewritten.push_back(std::move(text));
  return scratch->rewritten.back();
}

// The piece with `content` for its spaces and, if asked for, before it.
std::string_view Metaspaced(const SplitStep& step, std::string_view piece, bool at_front,
                            PreTokenizer::Scratch* scratch) {
  const bool begins = piece.front() == ' ' || piece.substr(0, step.content.size()) == step.content;
  const bool prepends = !begins && (step.prepend == SplitStep::Prepend::kAlways ||
                                    (step.prepend == SplitStep::Prepend::kFirst && at_front));
  size_t space = piece.find(' ');
  if (!prepends && space == piece.npos) return piece;
  std::string text = prepends ? step.content : "";
  text.reserve(piece.size() + piece.size() / 2);
  size_t covered = 0;
  for (; space != piece.npos; space = piece.find(' ', covered)) {
    text.append(piece.substr(covered, space - covered)).append(step.content);
    covered = space + 1;
  }
  text.append(piece.substr(covered));
  return Keep(std::move(text), scratch);
}

// Leaves the pieces of `piece` in scratch->ranges; those marked as matches are to be left out.
absl::Status FindRanges(const SplitStep& step, std::string_view piece,
                        PreTokenizer::Scratch* scratch) {
  if (step.kind == SplitStep::Kind::kPattern) {
    RETURN_IF_ERROR(step.pattern.FindAll(piece, &scratch->regex, &scratch->ranges));
  } else {
    FindCharacters(step, piece, &scratch->ranges);
  }
  if (step.invert) {
    for (auto& range : scratch->ranges) range.second = !range.second;
  }
  ApplyBehavior(step.behavior, &scratch->ranges);
  return absl::OkStatus();
}

// `*at_front`: the piece begins where the text does; false afterwards if its beginning went away.
absl::Status SplitPiece(const SplitStep& step, std::string_view piece, bool* at_front,
                        PreTokenizer::Scratch* scratch) {
  using Kind = SplitStep::Kind;
  auto& ranges = scratch->ranges;
  if (step.kind == Kind::kPrefixSpace) {
    if (piece.front() != ' ') piece = Keep(absl::StrCat(" ", ToAbsl(piece)), scratch);
    scratch->next_pieces.push_back(piece);
    return absl::OkStatus();
  }
  if (step.kind == Kind::kSpellBytes) {
    scratch->next_pieces.push_back(Keep(SpellBytes(piece), scratch));
    return absl::OkStatus();
  }
  if (step.kind == Kind::kMetaspace) {
    piece = Metaspaced(step, piece, *at_front, scratch);
    if (step.split) {
      FindStarts(step.content, piece, &ranges);
    } else {
      ranges.assign(1, {{0, piece.size()}, false});
    }
  } else if (step.behavior == SplitBehavior::kIsolated && IsOneCharacter(piece)) {
    // Isolating cannot cut one character, and Digits leaves many of them.
    scratch->next_pieces.push_back(piece);
    return absl::OkStatus();
  } else {
    RETURN_IF_ERROR(FindRanges(step, piece, scratch));
  }
  for (const auto& [range, removed] : ranges) {
    if (removed && range.begin == 0 && range.end > 0) *at_front = false;
    if (removed || range.begin == range.end) continue;
    scratch->next_pieces.push_back(piece.substr(range.begin, range.end - range.begin));
  }
  return absl::OkStatus();
}

}  // namespace

SplitStep StepOfKind(SplitStep::Kind kind) {
  SplitStep step;
  step.kind = kind;
  return step;
}

SplitStep CharactersStep(bool (*matches)(char32_t), SplitBehavior behavior) {
  SplitStep step;
  step.kind = SplitStep::Kind::kCharacters;
  step.matches = matches;
  step.behavior = behavior;
  return step;
}

SplitStep DigitsStep(bool individual) {
  return CharactersStep(IsNumeric,
                        individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
}

absl::StatusOr<SplitStep> RegexStep(std::string_view pattern, SplitBehavior behavior, bool invert) {
  SplitStep step;
  ASSIGN_OR_RETURN(step.pattern, Pattern::OfRegex(pattern));
  step.behavior = behavior;
  step.invert = invert;
  return step;
}

absl::Status PreTokenizer::Split(std::string_view text, bool at_front, Scratch* scratch) const {
  scratch->pieces.clear();
  scratch->rewritten.clear();
  if (!text.empty()) scratch->pieces.push_back(text);
  for (const SplitStep& step : steps_) {
    scratch->next_pieces.clear();
    bool piece_at_front = at_front;
    bool first = true;
    for (const std::string_view piece : scratch->pieces) {
      RETURN_IF_ERROR(SplitPiece(step, piece, &piece_at_front, scratch));
      if (first) at_front = piece_at_front;
      first = false;
      piece_at_front = false;
    }
    scratch->pieces.swap(scratch->next_pieces);
  }
  return absl::OkStatus();
}

}  // namespace pergola
