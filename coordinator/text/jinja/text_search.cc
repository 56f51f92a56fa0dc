#include "coordinator/text/jinja/text_search.h"

#include <cstring>
#include <vector>

#include "base/status.h"
#include "coordinator/text/jinja/unicode.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {

size_t FindText(std::string_view text, std::string_view wanted, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  const std::string_view rest = text.substr(from);
  const void* const found = memmem(rest.data(), rest.size(), wanted.data(), wanted.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

// From the last place on, with a prefix function of the reversed text: Knuth, Morris, Pratt.
absl::StatusOr<size_t> FindLastText(std::string_view text, std::string_view wanted, Heap& heap) {
  if (wanted.size() > text.size()) return std::string_view::npos;
  if (wanted.empty()) return text.size();
  RETURN_IF_ERROR(heap.CheckBytes(wanted.size() * sizeof(size_t)));
  const auto reversed = [wanted](size_t i) { return wanted[wanted.size() - 1 - i]; };
  std::vector<size_t> border(wanted.size(), 0);
  for (size_t i = 1, length = 0; i < wanted.size(); ++i) {
    while (length > 0 && reversed(i) != reversed(length)) length = border[length - 1];
    if (reversed(i) == reversed(length)) ++length;
    border[i] = length;
  }
  size_t length = 0;
  for (size_t at = text.size(); at-- > 0;) {
    while (length > 0 && text[at] != reversed(length)) length = border[length - 1];
    if (text[at] == reversed(length)) ++length;
    if (length == wanted.size()) return at;
  }
  return std::string_view::npos;
}

absl::StatusOr<std::string> ReplaceText(const std::string& text, const std::string& old,
                                        const std::string& with, int64_t count, Heap& heap) {
  std::string out;
  size_t position = 0;
  int64_t done = 0;
  if (old.empty()) {  // between all characters
    while (count < 0 || done < count) {
      RETURN_IF_ERROR(heap.Append(with, &out));
      ++done;
      if (position == text.size()) return out;
      const size_t begin = position;
      (void)NextCodePoint(text, &position);
      out.append(text, begin, position - begin);
    }
  } else {
    for (size_t found; count < 0 || done < count; ++done) {
      found = FindText(text, old, position);
      if (found == std::string::npos) break;
      out.append(text, position, found - position);
      RETURN_IF_ERROR(heap.Append(with, &out));
      position = found + old.size();
    }
  }
  out.append(text, position);
  return out;
}

std::string StripText(const std::string& text, const std::string* characters, bool left,
                      bool right) {
  std::string_view rest = text;
  if (characters == nullptr) {
    if (left) rest = StripLeft(rest);
    if (right) rest = StripRight(rest);
    return std::string(rest);
  }
  const auto strips = [characters](std::string_view character) {
    for (size_t i = 0; i < characters->size();) {
      const size_t begin = i;
      (void)NextCodePoint(*characters, &i);
      if (std::string_view(*characters).substr(begin, i - begin) == character) return true;
    }
    return false;
  };
  while (left && !rest.empty()) {
    size_t next = 0;
    (void)NextCodePoint(rest, &next);
    if (!strips(rest.substr(0, next))) break;
    rest.remove_prefix(next);
  }
  while (right && !rest.empty()) {
    size_t begin = rest.size();
    (void)PreviousCodePoint(rest, &begin);
    if (!strips(rest.substr(begin))) break;
    rest = rest.substr(0, begin);
  }
  return std::string(rest);
}

std::string Capitalized(std::string_view text) {
  if (text.empty()) return {};
  std::string out;
  size_t next = 0;
  AppendTitle(NextCodePoint(text, &next), &out);
  return out + ToLower(text.substr(next));
}

}  // namespace pergola::jinja
