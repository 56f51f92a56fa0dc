#include "coordinator/text/jinja/parse_number.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include "coordinator/text/jinja/unicode.h"

namespace pergola::jinja {
namespace {

// Without blanks around it and underscores between digits; nothing if an underscore stands wrong.
std::optional<std::string> Cleaned(std::string_view text) {
  text = StripRight(StripLeft(text));
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out.push_back(text[i]);
      continue;
    }
    const auto is_digit = [&](size_t at) {
      return at < text.size() && std::isalnum(static_cast<unsigned char>(text[at])) != 0;
    };
    if (i == 0 || !is_digit(i - 1) || !is_digit(i + 1)) return std::nullopt;
  }
  return out;
}

int DigitOf(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'z') return c - 'a' + 10;
  if (c >= 'A' && c <= 'Z') return c - 'A' + 10;
  return 99;
}

}  // namespace

std::optional<Int> ParseInt(std::string_view text, int64_t base) {
  const std::optional<std::string> cleaned = Cleaned(text);
  if (!cleaned || base < 0 || base == 1 || base > 36) return std::nullopt;
  std::string_view rest = *cleaned;
  const bool negative = !rest.empty() && rest[0] == '-';
  if (!rest.empty() && (rest[0] == '-' || rest[0] == '+')) rest.remove_prefix(1);
  if (rest.size() > 1 && rest[0] == '0') {
    const char mark = static_cast<char>(rest[1] | 0x20);
    const int64_t marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
    if (marked != 0 && (base == 0 || base == marked)) {
      base = marked;
      rest.remove_prefix(2);
    }
  }
  if (base == 0) base = 10;
  if (rest.empty()) return std::nullopt;
  Int value = 0;
  for (const char c : rest) {
    const int digit = DigitOf(c);
    if (digit >= base) return std::nullopt;
    if (__builtin_mul_overflow(value, static_cast<Int>(base), &value) ||
        __builtin_add_overflow(value, static_cast<Int>(digit), &value)) {
      return std::nullopt;
    }
  }
  return negative ? -value : value;
}

std::optional<double> ParseFloat(std::string_view text) {
  const std::optional<std::string> cleaned = Cleaned(text);
  if (!cleaned) return std::nullopt;
  std::string_view word = *cleaned;
  const bool negative = !word.empty() && word[0] == '-';
  if (!word.empty() && (word[0] == '-' || word[0] == '+')) word.remove_prefix(1);
  const std::string lower = ToLower(word);
  if (lower == "inf" || lower == "infinity") return negative ? -HUGE_VAL : HUGE_VAL;
  if (lower == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (lower.empty() || lower.find_first_not_of("0123456789.e+-") != std::string::npos) {
    return std::nullopt;
  }
  char* end = nullptr;
  const double value = std::strtod(cleaned->c_str(), &end);
  if (end != cleaned->c_str() + cleaned->size()) return std::nullopt;
  return value;
}

}  // namespace pergola::jinja
