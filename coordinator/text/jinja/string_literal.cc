#include "coordinator/text/jinja/string_literal.h"

#include <cstdint>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

char SimpleEscape(char c) {
  switch (c) {
    case 'n':
      return '\n';
    case 't':
      return '\t';
    case 'r':
      return '\r';
    case 'a':
      return '\a';
    case 'b':
      return '\b';
    case 'f':
      return '\f';
    case 'v':
      return '\v';
    case '\\':
    case '\'':
    case '"':
      return c;
    default:
      return '\0';
  }
}

// \xHH, \uHHHH or \UHHHHHHHH behind `*position`, the letter's.
absl::StatusOr<char32_t> HexEscape(std::string_view literal, size_t* position) {
  const char letter = literal[*position];
  const size_t count = letter == 'x' ? 2 : letter == 'u' ? 4 : 8;
  char32_t value = 0;
  for (size_t i = 1; i <= count; ++i) {
    const int digit = *position + i < literal.size() ? HexDigit(literal[*position + i]) : -1;
    if (digit < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("truncated \\", std::string(1, letter), " escape in a string"));
    }
    value = value << 4 | static_cast<char32_t>(digit);
  }
  if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
    return absl::InvalidArgumentError(absl::StrCat("the escape of code point ",
                                                   static_cast<uint32_t>(value),
                                                   " in a string is not a character"));
  }
  *position += count + 1;
  return value;
}

char32_t OctalEscape(std::string_view literal, size_t* position) {
  char32_t value = 0;
  for (int i = 0; i < 3 && *position < literal.size(); ++i, ++*position) {
    const char c = literal[*position];
    if (c < '0' || c > '7') break;
    value = value << 3 | static_cast<char32_t>(c - '0');
  }
  return value;
}

// Python escapes the text to ASCII before it reads the escapes, so a backslash before a character
// beyond ASCII escapes that escape.
void AppendEscapedTwice(std::string_view literal, size_t* position, std::string* out) {
  const char32_t c = NextCodePoint(literal, position);
  char text[16];
  const char* const format = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
  std::snprintf(text, sizeof(text), format, static_cast<uint32_t>(c));
  out->append(text);
}

}  // namespace

absl::StatusOr<std::string> UnescapeString(std::string_view literal) {
  std::string out;
  out.reserve(literal.size());
  size_t position = 0;
  while (position < literal.size()) {
    const char c = literal[position];
    if (c != '\\') {
      out.push_back(c);
      ++position;
      continue;
    }
    if (++position == literal.size()) return absl::InvalidArgumentError("\\ at end of string");
    const char next = literal[position];
    if (next == '\n') {
      ++position;
    } else if (const char simple = SimpleEscape(next); simple != '\0') {
      out.push_back(simple);
      ++position;
    } else if (next == 'x' || next == 'u' || next == 'U') {
      ASSIGN_OR_RETURN(const char32_t value, HexEscape(literal, &position));
      AppendCodePoint(value, &out);
    } else if (next >= '0' && next <= '7') {
      AppendCodePoint(OctalEscape(literal, &position), &out);
    } else if (next == 'N') {
      return absl::InvalidArgumentError("\\N escapes in strings are not supported");
    } else if (static_cast<uint8_t>(next) >= 0x80) {
      AppendEscapedTwice(literal, &position, &out);
    } else {
      out.push_back('\\');
      out.push_back(next);
      ++position;
    }
  }
  return out;
}

}  // namespace pergola::jinja
