#include "coordinator/text/jinja/format_spec.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/text_of.h"
#include "coordinator/text/jinja/unicode.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

// No text of a prompt needs more; keeps the digits of a number within a small buffer.
constexpr int64_t kMaxPrecision = 1000;
constexpr int64_t kMaxWidth = 1 << 20;

bool IsAlign(char c) {
  return c == '<' || c == '>' || c == '^' || c == '=';
}

absl::StatusOr<int64_t> Number(std::string_view* rest, int64_t most) {
  int64_t value = 0;
  while (!rest->empty() && rest->front() >= '0' && rest->front() <= '9') {
    value = value * 10 + (rest->front() - '0');
    if (value > most) {
      return absl::InvalidArgumentError(
          absl::StrCat("a width or precision of a format exceeds ", most));
    }
    rest->remove_prefix(1);
  }
  return value;
}

bool Take(std::string_view* rest, std::string_view any, char* taken) {
  if (rest->empty() || any.find(rest->front()) == std::string_view::npos) return false;
  *taken = rest->front();
  rest->remove_prefix(1);
  return true;
}

std::string Padded(const std::string& prefix, const std::string& body, const FormatSpec& spec,
                   char own_align) {
  const int64_t missing = spec.width - CountCodePoints(prefix) - CountCodePoints(body);
  std::string left, right;
  const char align = spec.align == '\0' ? own_align : spec.align;
  const int64_t before = missing <= 0 ? 0 : align == '<' ? 0 : align == '^' ? missing / 2 : missing;
  for (int64_t i = 0; i < before; ++i) left += spec.fill;
  for (int64_t i = before; i < missing; ++i) right += spec.fill;
  if (align == '=') return absl::StrCat(prefix, left, body);
  return absl::StrCat(left, prefix, body, right);
}

std::string SignOf(bool negative, const FormatSpec& spec) {
  if (negative) return "-";
  return spec.sign == '-' ? "" : std::string(1, spec.sign);
}

std::string Grouped(const std::string& digits, char grouping, size_t group) {
  if (grouping == '\0') return digits;
  size_t whole = 0;
  while (whole < digits.size() && std::isxdigit(static_cast<unsigned char>(digits[whole]))) ++whole;
  std::string out;
  for (size_t i = 0; i < whole; ++i) {
    if (i > 0 && (whole - i) % group == 0) out.push_back(grouping);
    out.push_back(digits[i]);
  }
  return out + digits.substr(whole);
}

std::string DigitsOf(Int value, unsigned base, bool upper) {
  auto rest = static_cast<unsigned __int128>(value);
  if (value < 0) rest = -rest;
  std::string digits;
  do {
    const char* const alphabet = upper ? "0123456789ABCDEF" : "0123456789abcdef";
    digits.push_back(alphabet[static_cast<unsigned>(rest % base)]);
    rest /= base;
  } while (rest != 0);
  std::reverse(digits.begin(), digits.end());
  return digits;
}

absl::Status WrongType(const FormatSpec& spec, const Value& value) {
  return absl::InvalidArgumentError(absl::StrCat("unknown format code '", std::string(1, spec.type),
                                                 "' for object of type '", TypeName(value), "'"));
}

absl::StatusOr<std::string> FormatFloat(const Value& value, FormatSpec spec) {
  double number = value.real();
  std::string suffix;
  if (spec.type == '%') {
    number *= 100;
    suffix = "%";
    spec.type = 'f';
  }
  const bool upper = spec.type == 'F' || spec.type == 'E' || spec.type == 'G';
  const char type = static_cast<char>(upper ? spec.type | 0x20 : spec.type);
  std::string body;
  const double size = std::fabs(number);
  const bool is_plain = type == '\0' || type == 'n';
  const bool is_fixed = type == 'f' || type == 'e' || type == 'g';
  if (std::isfinite(number) && !is_plain && !is_fixed) return WrongType(spec, value);
  if (!std::isfinite(number) || (is_plain && spec.precision < 0)) {
    body = ReprOfFloat(size);
  } else if (is_fixed) {
    body = FixedDigits(size, spec.precision < 0 ? 6 : spec.precision, type);
  } else {
    body = FixedDigits(size, spec.precision, 'g');
    if (type == '\0' && body.find_first_of(".e") == std::string::npos) body += ".0";
  }
  if (upper) std::transform(body.begin(), body.end(), body.begin(), ::toupper);
  return Padded(SignOf(std::signbit(number), spec), Grouped(body, spec.grouping, 3) + suffix, spec,
                '>');
}

absl::StatusOr<std::string> FormatInt(const Value& value, const FormatSpec& spec) {
  const Int number = value.integer();
  std::string prefix = SignOf(number < 0, spec);
  unsigned base = 10;
  switch (spec.type) {
    case '\0':
    case 'd':
    case 'n':
      break;
    case 'x':
    case 'X':
      base = 16;
      break;
    case 'o':
      base = 8;
      break;
    case 'b':
      base = 2;
      break;
    case 'c': {
      if (number < 0 || number > 0x10FFFF || (number >= 0xD800 && number <= 0xDFFF)) {
        return absl::InvalidArgumentError("%c arg not in range(0x110000)");
      }
      std::string character;
      AppendCodePoint(static_cast<char32_t>(number), &character);
      return Padded("", character, spec, '<');
    }
    default:
      return FormatFloat(Value::Float(value.real()), spec);
  }
  if (spec.precision >= 0) {
    return absl::InvalidArgumentError("precision not allowed in integer format specifier");
  }
  if (spec.alternate && base != 10) {
    prefix += absl::StrCat("0", std::string(1, spec.type));
  }
  const std::string digits = DigitsOf(number, base, spec.type == 'X');
  return Padded(prefix, Grouped(digits, spec.grouping, base == 10 ? 3 : 4), spec, '>');
}

}  // namespace

std::string FixedDigits(double value, int64_t precision, char type) {
  const auto format = type == 'f'   ? std::chars_format::fixed
                      : type == 'e' ? std::chars_format::scientific
                                    : std::chars_format::general;
  // The largest double has 309 digits before the point.
  std::string text(static_cast<size_t>(precision) + 400, '\0');
  const auto result = std::to_chars(text.data(), text.data() + text.size(), value, format,
                                    static_cast<int>(precision));
  text.resize(static_cast<size_t>(result.ptr - text.data()));
  return text;
}

absl::StatusOr<FormatSpec> ParseFormatSpec(std::string_view text) {
  FormatSpec spec;
  std::string_view rest = text;
  size_t first = 0;
  if (!rest.empty()) (void)NextCodePoint(rest, &first);
  if (first > 0 && first < rest.size() && IsAlign(rest[first])) {
    spec.fill = rest.substr(0, first);
    spec.align = rest[first];
    rest.remove_prefix(first + 1);
  } else {
    Take(&rest, "<>^=", &spec.align);
  }
  Take(&rest, "+- ", &spec.sign);
  char mark = '\0';
  spec.alternate = Take(&rest, "#", &mark);
  if (Take(&rest, "0", &mark) && spec.align == '\0') {
    spec.fill = "0";
    spec.align = '=';
  }
  ASSIGN_OR_RETURN(spec.width, Number(&rest, kMaxWidth));
  Take(&rest, ",_", &spec.grouping);
  if (Take(&rest, ".", &mark)) {
    if (rest.empty() || rest[0] < '0' || rest[0] > '9') {
      return absl::InvalidArgumentError("format specifier missing precision");
    }
    ASSIGN_OR_RETURN(spec.precision, Number(&rest, kMaxPrecision));
  }
  if (rest.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid format specifier '", ToAbsl(text), "'"));
  }
  if (!rest.empty()) spec.type = rest[0];
  return spec;
}

absl::StatusOr<std::string> FormatValue(const Value& value, const FormatSpec& spec, Heap& heap) {
  RETURN_IF_ERROR(heap.CheckBytes(static_cast<uint64_t>(spec.width) * spec.fill.size()));
  if (value.kind() == Kind::kFloat) return FormatFloat(value, spec);
  if (value.kind() == Kind::kInt || (value.kind() == Kind::kBool && spec.type != '\0')) {
    return FormatInt(value, spec);
  }
  if (!value.is_string() && value.kind() != Kind::kBool) {
    return absl::InvalidArgumentError(
        absl::StrCat("unsupported format string passed to ", TypeName(value), ".__format__"));
  }
  if ((spec.type != '\0' && spec.type != 's') || spec.align == '=' || spec.grouping != '\0') {
    return WrongType(spec, value);
  }
  ASSIGN_OR_RETURN(std::string text, TextOf(value, heap));
  if (spec.precision >= 0) text.resize(OffsetOf(text, spec.precision, false));
  return Padded("", text, spec, '<');
}

}  // namespace pergola::jinja
