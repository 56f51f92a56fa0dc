#include "coordinator/text/added_tokens.h"

#include <algorithm>

#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

bool TouchesWord(std::string_view text, size_t begin, size_t end) {
  if (begin > 0) {
    size_t before = begin;
    if (IsWordCharacter(PreviousCodePoint(text, &before))) return true;
  }
  return end < text.size() && IsWordCharacter(NextCodePoint(text, &end));
}

// The beginning of the white space that ends at `end`; looks no further than `limit`.
size_t BeginOfSpace(std::string_view text, size_t end, size_t limit) {
  while (end > limit) {
    size_t before = end;
    if (!IsWhitespace(PreviousCodePoint(text, &before))) break;
    end = before;
  }
  return end;
}

size_t EndOfSpace(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t after = begin;
    if (!IsWhitespace(NextCodePoint(text, &after))) break;
    begin = after;
  }
  return begin;
}

// Of two tokens that normalize to the same text the first counts.
std::vector<std::pair<std::string_view, int32_t>> KeysOf(const std::vector<AddedToken>& tokens) {
  std::vector<std::pair<std::string_view, int32_t>> keys;
  for (size_t i = 0; i < tokens.size(); ++i) {
    keys.emplace_back(tokens[i].content, static_cast<int32_t>(i));
  }
  return keys;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), trie_(KeysOf(tokens_)) {}

int32_t AddedTokenFinder::LongestAt(std::string_view text) const {
  int32_t longest = -1;
  trie_.ForEachPrefix(text, [&longest](size_t, int32_t index) { longest = index; });
  return longest;
}

void AddedTokenFinder::Split(std::string_view text, std::vector<Segment>* segments) const {
  size_t covered = 0;
  for (size_t position = 0; position < text.size();) {
    const int32_t index = LongestAt(text.substr(position));
    if (index < 0) {
      ++position;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = position;
    size_t end = position + token.content.size();
    position = end;
    if (token.single_word && TouchesWord(text, begin, end)) continue;
    if (token.left_strip && begin > covered) begin = BeginOfSpace(text, begin, covered);
    if (token.right_strip) end = EndOfSpace(text, end);
    // A token of white space may lie within what the token before it took: it is found all the
    // same, and the rest of that white space becomes text again, as in Hugging Face tokenizers.
    if (begin > covered) segments->push_back({text.substr(covered, begin - covered), -1});
    segments->push_back({text.substr(begin, end - begin), token.id});
    covered = end;
  }
  if (covered < text.size()) segments->push_back({text.substr(covered), -1});
}

}  // namespace pergola
