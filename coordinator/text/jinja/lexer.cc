#include "coordinator/text/jinja/lexer.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/heap.h"
#include "coordinator/text/jinja/string_literal.h"
#include "coordinator/text/jinja/unicode.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

bool IsAsciiDigit(char c) {
  return c >= '0' && c <= '9';
}

// Every line end as one line feed, and not the last one.
std::string WithLineFeeds(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      text.push_back(source[i]);
      continue;
    }
    text.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(WithLineFeeds(source)) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (position_ < text_.size()) RETURN_IF_ERROR(Root());
    Push(TokenType::kEnd);
    return std::move(tokens_);
  }

 private:
  std::string_view Rest() const { return std::string_view(text_).substr(position_); }
  bool Sees(std::string_view what) const { return Rest().substr(0, what.size()) == what; }
  char At(size_t offset) const {
    return position_ + offset < text_.size() ? text_[position_ + offset] : '\0';
  }
  void Push(TokenType type, std::string text = {}) {
    tokens_.push_back({type, line_, std::move(text), Value()});
  }
  void Advance(size_t bytes) {
    line_ +=
        static_cast<int>(std::count(text_.begin() + static_cast<int64_t>(position_),
                                    text_.begin() + static_cast<int64_t>(position_ + bytes), '\n'));
    position_ += bytes;
    line_starting_ = bytes > 0 && text_[position_ - 1] == '\n';
  }
  void SkipSpace() { Advance(Rest().size() - StripLeft(Rest()).size()); }

  absl::Status Root();
  absl::Status Comment();
  bool TryRaw(size_t sign_bytes, absl::Status* status);
  absl::Status RawBody();
  absl::Status Expression(bool is_variable);
  bool TryEnd(bool is_variable);
  bool TryNumber(absl::Status* status);
  absl::Status Integer(size_t length);
  bool TryName();
  absl::Status String();
  absl::Status Operator();
  size_t DigitsWithUnderscores(size_t offset) const;
  size_t FloatLength() const;
  size_t IntegerLength() const;
  void PushData(std::string_view data, char sign, bool may_strip_line);

  const std::string text_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
  std::string open_;  // the closing brackets that are due
};

// The data before a tag. `sign` stands behind the tag's opening; without one, the blanks between
// the line's start and a block or comment vanish.
void Lexer::PushData(std::string_view data, char sign, bool may_strip_line) {
  std::string_view kept = data;
  if (sign == '-') {
    kept = StripRight(data);
  } else if (sign != '+' && may_strip_line) {
    const size_t line_start = data.rfind('\n') + 1;
    if ((line_start > 0 || line_starting_) && StripLeft(data.substr(line_start)).empty()) {
      kept = data.substr(0, line_start);
    }
  }
  if (!kept.empty()) Push(TokenType::kData, std::string(kept));
}

absl::Status Lexer::Root() {
  size_t tag = position_;
  while ((tag = text_.find('{', tag)) != std::string::npos) {
    const char next = tag + 1 < text_.size() ? text_[tag + 1] : '\0';
    if (next == '%' || next == '{' || next == '#') break;
    ++tag;
  }
  if (tag == std::string::npos) {
    Push(TokenType::kData, std::string(Rest()));
    Advance(Rest().size());
    return absl::OkStatus();
  }
  const char kind = text_[tag + 1];
  const char mark = tag + 2 < text_.size() ? text_[tag + 2] : '\0';
  const char sign = mark == '-' || mark == '+' ? mark : '\0';
  PushData(Rest().substr(0, tag - position_), sign, kind != '{');
  Advance(tag - position_);
  const size_t sign_bytes = sign == '\0' ? 0 : 1;
  absl::Status status;
  if (kind == '%' && TryRaw(sign_bytes, &status)) return status;
  Advance(2 + sign_bytes);
  if (kind == '#') return Comment();
  Push(kind == '{' ? TokenType::kVariableBegin : TokenType::kBlockBegin);
  return Expression(kind == '{');
}

absl::Status Lexer::Comment() {
  const int begin = line_;
  for (size_t i = position_;; ++i) {
    i = text_.find_first_of("+-#", i);
    if (i == std::string::npos) return TemplateError(begin, "missing end of comment tag");
    const std::string_view rest = std::string_view(text_).substr(i);
    if (rest.substr(0, 2) == "#}") {
      Advance(i - position_ + 2);
      if (At(0) == '\n') Advance(1);
      return absl::OkStatus();
    }
    if (rest.substr(0, 3) == "+#}" || rest.substr(0, 3) == "-#}") {
      Advance(i - position_ + 3);
      if (rest[0] == '-') SkipSpace();
      return absl::OkStatus();
    }
  }
}

// {% raw %}: true if it is one.
bool Lexer::TryRaw(size_t sign_bytes, absl::Status* status) {
  std::string_view rest = StripLeft(Rest().substr(2 + sign_bytes));
  if (rest.substr(0, 3) != "raw") return false;
  rest = StripLeft(rest.substr(3));
  const bool strips = rest.substr(0, 3) == "-%}";
  if (!strips && rest.substr(0, 2) != "%}") return false;
  rest = strips ? StripLeft(rest.substr(3)) : rest.substr(2);
  Advance(Rest().size() - rest.size());
  *status = RawBody();
  return true;
}

absl::Status Lexer::RawBody() {
  const int begin = line_;
  for (size_t tag = position_; (tag = text_.find("{%", tag)) != std::string::npos; ++tag) {
    std::string_view rest = std::string_view(text_).substr(tag + 2);
    const char sign = !rest.empty() && (rest[0] == '-' || rest[0] == '+') ? rest[0] : '\0';
    if (sign != '\0') rest.remove_prefix(1);
    rest = StripLeft(rest);
    if (rest.substr(0, 6) != "endraw") continue;
    rest = StripLeft(rest.substr(6));
    const char end_sign = !rest.empty() && (rest[0] == '-' || rest[0] == '+') ? rest[0] : '\0';
    if (end_sign != '\0') rest.remove_prefix(1);
    if (rest.substr(0, 2) != "%}") continue;
    rest.remove_prefix(2);
    if (end_sign == '-') rest = StripLeft(rest);
    if (end_sign == '\0' && !rest.empty() && rest[0] == '\n') rest.remove_prefix(1);
    PushData(Rest().substr(0, tag - position_), sign, true);
    Advance(Rest().size() - rest.size());
    return absl::OkStatus();
  }
  return TemplateError(begin, "missing end of raw directive");
}

bool Lexer::TryEnd(bool is_variable) {
  if (!open_.empty()) return false;
  const std::string_view end = is_variable ? "}}" : "%}";
  const char sign = At(0) == '-' || (At(0) == '+' && !is_variable) ? At(0) : '\0';
  const size_t sign_bytes = sign == '\0' ? 0 : 1;
  if (Rest().substr(sign_bytes, 2) != end) return false;
  Push(is_variable ? TokenType::kVariableEnd : TokenType::kBlockEnd);
  Advance(sign_bytes + 2);
  if (sign == '-') SkipSpace();
  if (sign == '\0' && !is_variable && At(0) == '\n') Advance(1);
  return true;
}

absl::Status Lexer::Expression(bool is_variable) {
  open_.clear();
  while (position_ < text_.size()) {
    if (TryEnd(is_variable)) return absl::OkStatus();
    size_t next = position_;
    if (IsPythonSpace(NextCodePoint(text_, &next))) {
      SkipSpace();
      continue;
    }
    absl::Status status;
    if (TryNumber(&status)) {
      RETURN_IF_ERROR(status);
      continue;
    }
    if (TryName()) continue;
    RETURN_IF_ERROR(At(0) == '\'' || At(0) == '"' ? String() : Operator());
  }
  return absl::OkStatus();  // the parser misses the end
}

// (\d+_)*\d+ from `offset`: its length.
size_t Lexer::DigitsWithUnderscores(size_t offset) const {
  size_t end = offset;
  while (IsAsciiDigit(At(end)) || (end > offset && At(end) == '_' && IsAsciiDigit(At(end + 1)))) {
    ++end;
  }
  return end - offset;
}

size_t Lexer::FloatLength() const {
  if (position_ > 0 && text_[position_ - 1] == '.') return 0;
  const size_t whole = DigitsWithUnderscores(0);
  if (whole == 0) return 0;
  size_t end = whole;
  if (At(end) == '.') {
    const size_t fraction = DigitsWithUnderscores(end + 1);
    if (fraction == 0) return 0;
    end += 1 + fraction;
  }
  if (At(end) == 'e' || At(end) == 'E') {
    const size_t sign = At(end + 1) == '+' || At(end + 1) == '-' ? 1 : 0;
    const size_t exponent = DigitsWithUnderscores(end + 1 + sign);
    if (exponent > 0) end += 1 + sign + exponent;
  }
  return end == whole ? 0 : end;
}

size_t Lexer::IntegerLength() const {
  if (!IsAsciiDigit(At(0))) return 0;
  const auto run = [this](size_t end, auto is_digit) {
    while (is_digit(At(end)) || (At(end) == '_' && is_digit(At(end + 1)))) ++end;
    return end;
  };
  if (At(0) != '0') return run(0, IsAsciiDigit);
  const char base = static_cast<char>(At(1) | 0x20);
  const auto is_digit = [base](char c) {
    if (base == 'b') return c == '0' || c == '1';
    if (base == 'o') return c >= '0' && c <= '7';
    return IsAsciiDigit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
  };
  if (base == 'b' || base == 'o' || base == 'x') {
    const size_t end = run(2, is_digit);
    if (end > 2) return end;
  }
  return run(0, [](char c) { return c == '0'; });
}

bool Lexer::TryNumber(absl::Status* status) {
  const size_t float_length = FloatLength();
  const size_t length = float_length > 0 ? float_length : IntegerLength();
  if (length == 0) return false;
  if (float_length == 0) {
    *status = Integer(length);
    return true;
  }
  std::string digits(Rest().substr(0, length));
  digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
  Push(TokenType::kFloat);
  tokens_.back().number = Value::Float(std::strtod(digits.c_str(), nullptr));
  Advance(length);
  return true;
}

absl::Status Lexer::Integer(size_t length) {
  std::string digits(Rest().substr(0, length));
  digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
  const char mark = digits.size() > 1 ? static_cast<char>(digits[1] | 0x20) : '\0';
  const int base = mark == 'b' ? 2 : mark == 'o' ? 8 : mark == 'x' ? 16 : 10;
  int64_t value = 0;
  const char* const begin = digits.data() + (base == 10 ? 0 : 2);
  const auto [end, error] = std::from_chars(begin, digits.data() + digits.size(), value, base);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    return TemplateError(line_, "an integer does not fit in 64 bits");
  }
  Push(TokenType::kInteger);
  tokens_.back().number = Value::Integer(value);
  Advance(length);
  return absl::OkStatus();
}

bool Lexer::TryName() {
  size_t end = position_;
  while (end < text_.size()) {
    size_t next = end;
    const char32_t c = NextCodePoint(text_, &next);
    if (c != '_' && !IsWordCharacter(c)) break;
    end = next;
  }
  if (end == position_) return false;
  Push(TokenType::kName, text_.substr(position_, end - position_));
  Advance(end - position_);
  return true;
}

absl::Status Lexer::String() {
  const char quote = At(0);
  size_t end = position_ + 1;
  while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
  if (end >= text_.size()) {
    return TemplateError(
        line_, absl::StrCat("unexpected char ", std::string(1, quote), ": the string has no end"));
  }
  auto text = UnescapeString(std::string_view(text_).substr(position_ + 1, end - position_ - 1));
  if (!text.ok()) return TemplateError(line_, ToStd(text.status().message()));
  Push(TokenType::kString, *std::move(text));
  Advance(end + 1 - position_);
  return absl::OkStatus();
}

absl::Status Lexer::Operator() {
  static constexpr std::string_view kPairs[] = {"**", "//", "==", "!=", ">=", "<="};
  size_t length = 1;
  for (const std::string_view pair : kPairs) length = Sees(pair) ? 2 : length;
  const char c = At(0);
  if (length == 1 && std::string_view("+-/*%~[](){}><=.:|,;").find(c) == std::string_view::npos) {
    size_t end = position_;
    (void)NextCodePoint(text_, &end);
    return TemplateError(line_, absl::StrCat("unexpected character '",
                                             text_.substr(position_, end - position_), "'"));
  }
  if (c == '{' || c == '(' || c == '[') {
    open_.push_back(c == '{' ? '}' : c == '(' ? ')' : ']');
  } else if (c == '}' || c == ')' || c == ']') {
    if (open_.empty()) {
      return TemplateError(line_, absl::StrCat("unexpected '", std::string(1, c), "'"));
    }
    const char expected = open_.back();
    open_.pop_back();
    if (expected != c) {
      return TemplateError(line_, absl::StrCat("unexpected '", std::string(1, c), "', expected '",
                                               std::string(1, expected), "'"));
    }
  }
  Push(TokenType::kOperator, std::string(Rest().substr(0, length)));
  Advance(length);
  return absl::OkStatus();
}

}  // namespace

absl::Status TemplateError(int line, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": ", ToAbsl(what)));
}

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) {
  return Lexer(source).Run();
}

}  // namespace pergola::jinja
