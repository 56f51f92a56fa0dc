// "...".format(...) and "..." % ....
#include <algorithm>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/format_spec.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/jinja/text_of.h"

namespace pergola::jinja {
namespace {

bool IsNumber(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

class BraceFormatter {
 public:
  BraceFormatter(const Arguments& arguments, bool safe, Heap& heap)
      : arguments_(arguments), safe_(safe), heap_(heap) {}

  absl::StatusOr<std::string> Run(std::string_view text, int depth);

 private:
  absl::StatusOr<std::string> Field(std::string_view field, int depth);
  absl::StatusOr<Value> FieldValue(std::string_view path);
  absl::StatusOr<Value> Argument(std::string_view name);
  absl::StatusOr<Value> Follow(Value value, std::string_view path);

  const Arguments& arguments_;
  const bool safe_;
  Heap& heap_;
  int64_t next_ = 0;
  bool automatic_ = false, manual_ = false;
};

absl::StatusOr<std::string> BraceFormatter::Run(std::string_view text, int depth) {
  if (depth > 1) return absl::InvalidArgumentError("max string recursion exceeded");
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t brace = text.find_first_of("{}", i);
    RETURN_IF_ERROR(heap_.Append(text.substr(i, brace == text.npos ? brace : brace - i), &out));
    if (brace == text.npos) break;
    if (brace + 1 < text.size() && text[brace + 1] == text[brace]) {
      out.push_back(text[brace]);
      i = brace + 2;
      continue;
    }
    if (text[brace] == '}') {
      return absl::InvalidArgumentError("single '}' encountered in format string");
    }
    size_t end = brace + 1;
    for (int open = 1; end < text.size(); ++end) {
      if (text[end] == '{') ++open;
      if (text[end] == '}' && --open == 0) break;
    }
    if (end >= text.size()) {
      return absl::InvalidArgumentError("expected '}' before end of string");
    }
    ASSIGN_OR_RETURN(const std::string field,
                     Field(text.substr(brace + 1, end - brace - 1), depth));
    RETURN_IF_ERROR(heap_.Append(field, &out));
    i = end + 1;
  }
  return out;
}

absl::StatusOr<std::string> BraceFormatter::Field(std::string_view field, int depth) {
  // A colon or mark within brackets belongs to the name.
  size_t end = 0;
  for (bool in_brackets = false; end < field.size(); ++end) {
    if (field[end] == '[') in_brackets = true;
    if (field[end] == ']') in_brackets = false;
    if (!in_brackets && (field[end] == ':' || field[end] == '!')) break;
  }
  ASSIGN_OR_RETURN(Value value, FieldValue(field.substr(0, end)));
  std::string_view rest = field.substr(end);
  if (!rest.empty() && rest[0] == '!') {
    const char conversion = rest.size() > 1 ? rest[1] : '\0';
    if (conversion != 'r' && conversion != 's') {
      return absl::InvalidArgumentError("unknown conversion specifier in a format string");
    }
    std::string text;
    RETURN_IF_ERROR(conversion == 'r' ? AppendRepr(value, heap_, &text)
                                      : AppendText(value, heap_, &text));
    value = heap_.String(std::move(text));
    rest.remove_prefix(2);
    if (!rest.empty() && rest[0] != ':') {
      return absl::InvalidArgumentError("expected ':' after conversion specifier");
    }
  }
  std::string text;
  if (rest.size() <= 1) {
    RETURN_IF_ERROR(AppendText(value, heap_, &text));
  } else {
    ASSIGN_OR_RETURN(const std::string spec_text, Run(rest.substr(1), depth + 1));
    ASSIGN_OR_RETURN(const FormatSpec spec, ParseFormatSpec(spec_text));
    ASSIGN_OR_RETURN(text, FormatValue(value, spec, heap_));
  }
  return safe_ && !value.is_safe() ? EscapeHtml(text) : text;
}

absl::StatusOr<Value> BraceFormatter::Argument(std::string_view name) {
  int64_t index = -1;
  if (name.empty()) {
    automatic_ = true;
    index = next_++;
  } else if (IsNumber(name)) {
    manual_ = true;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
    if (error != std::errc()) index = INT64_MAX;
  }
  if (automatic_ && manual_) {
    return absl::InvalidArgumentError(
        "cannot mix manual and automatic field numbering in a format string");
  }
  if (index >= 0) {
    if (index < static_cast<int64_t>(arguments_.positional.size())) {
      return arguments_.positional[index];
    }
    return absl::InvalidArgumentError(
        absl::StrCat("replacement index ", index, " out of range for positional args of format()"));
  }
  for (const auto& [known, value] : arguments_.keyword) {
    if (known == name) return value;
  }
  return absl::InvalidArgumentError(absl::StrCat("format() has no argument '", ToAbsl(name), "'"));
}

absl::StatusOr<Value> BraceFormatter::FieldValue(std::string_view path) {
  const size_t end = std::min(path.find_first_of(".["), path.size());
  ASSIGN_OR_RETURN(Value value, Argument(path.substr(0, end)));
  return Follow(std::move(value), path.substr(end));
}

absl::StatusOr<Value> BraceFormatter::Follow(Value value, std::string_view path) {
  while (!path.empty()) {
    const bool is_attribute = path[0] == '.';
    path.remove_prefix(1);
    const size_t end =
        is_attribute ? std::min(path.find_first_of(".["), path.size()) : path.find(']');
    if (end == path.npos || end == 0) {
      return absl::InvalidArgumentError("empty attribute or missing ']' in a format string");
    }
    const std::string_view key = path.substr(0, end);
    if (is_attribute) {
      ASSIGN_OR_RETURN(value, AttributeOf(value, std::string(key), heap_));
    } else if (int64_t index = 0; IsNumber(key) && key.size() < 18) {
      std::from_chars(key.data(), key.data() + key.size(), index);
      ASSIGN_OR_RETURN(value, SubscriptOf(value, Value::Integer(index), heap_));
    } else {
      ASSIGN_OR_RETURN(value, SubscriptOf(value, heap_.String(std::string(key)), heap_));
    }
    path.remove_prefix(is_attribute ? end : end + 1);
    if (!is_attribute && !path.empty() && path[0] != '.' && path[0] != '[') {
      return absl::InvalidArgumentError("only '.' or '[' may follow ']' in a format field");
    }
  }
  return value;
}

class PercentFormatter {
 public:
  PercentFormatter(const Value& text, const Value& arguments, Heap& heap)
      : text_(text.text()), safe_(text.is_safe()), arguments_(arguments), heap_(heap) {
    if (arguments.kind() == Kind::kTuple) {
      positional_ = arguments.items();
    } else {
      positional_ = {arguments};
    }
  }

  absl::StatusOr<std::string> Run();

 private:
  absl::StatusOr<Value> Next();
  absl::StatusOr<int64_t> WidthOf(std::string_view* rest);
  absl::StatusOr<std::string> Conversion(std::string_view* rest);
  absl::StatusOr<std::string> Converted(const Value& value, FormatSpec spec);

  const std::string& text_;
  const bool safe_;
  const Value& arguments_;
  Heap& heap_;
  std::vector<Value> positional_;
  size_t used_ = 0;
  bool by_key_ = false;
};

absl::StatusOr<Value> PercentFormatter::Next() {
  if (used_ < positional_.size()) return positional_[used_++];
  return absl::InvalidArgumentError("not enough arguments for format string");
}

absl::StatusOr<int64_t> PercentFormatter::WidthOf(std::string_view* rest) {
  constexpr int64_t kMost = 1000;
  int64_t value = 0;
  if (!rest->empty() && rest->front() == '*') {
    rest->remove_prefix(1);
    ASSIGN_OR_RETURN(const Value star, Next());
    if (!star.is_integral()) return absl::InvalidArgumentError("* wants int");
    if (star.integer() < -kMost || star.integer() > kMost) value = kMost + 1;
    if (value == 0) return static_cast<int64_t>(star.integer());
  }
  while (!rest->empty() && rest->front() >= '0' && rest->front() <= '9' && value <= kMost) {
    value = value * 10 + (rest->front() - '0');
    rest->remove_prefix(1);
  }
  if (value <= kMost) return value;
  return absl::InvalidArgumentError(
      absl::StrCat("a width or precision of a format exceeds ", kMost));
}

absl::StatusOr<std::string> PercentFormatter::Converted(const Value& value, FormatSpec spec) {
  std::string text;
  switch (spec.type) {
    case 's':
    case 'r':
      RETURN_IF_ERROR(spec.type == 's' ? AppendText(value, heap_, &text)
                                       : AppendRepr(value, heap_, &text));
      if (safe_ && !value.is_safe()) text = EscapeHtml(text);
      spec.type = 's';
      if (spec.align == '=') {
        spec.align = '>';
        spec.fill = " ";
      }
      return FormatValue(heap_.String(std::move(text)), spec, heap_);
    case 'c':
      if (value.is_string() && value.text_length() == 1) {
        spec.type = 's';
      } else if (!value.is_integral()) {
        return absl::InvalidArgumentError("%c requires int or char");
      }
      return FormatValue(value, spec, heap_);
    case 'd':
    case 'i':
    case 'u':
      spec.type = 'd';
      if (value.kind() == Kind::kFloat && std::abs(value.real()) < 1e30) {
        return FormatValue(Value::Integer(static_cast<Int>(value.real())), spec, heap_);
      }
      [[fallthrough]];
    case 'x':
    case 'X':
    case 'o':
      spec.precision = -1;
      if (value.is_integral()) return FormatValue(value, spec, heap_);
      break;
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
      if (value.is_number()) return FormatValue(Value::Float(value.real()), spec, heap_);
      break;
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("unsupported format character '", std::string(1, spec.type), "'"));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "%", std::string(1, spec.type), " format: a number is required, not ", TypeName(value)));
}

absl::StatusOr<std::string> PercentFormatter::Conversion(std::string_view* rest) {
  Value keyed;
  if (!rest->empty() && rest->front() == '(') {
    const size_t end = rest->find(')');
    if (end == rest->npos) return absl::InvalidArgumentError("incomplete format key");
    if (!arguments_.is_dict()) return absl::InvalidArgumentError("format requires a mapping");
    const std::string_view key = rest->substr(1, end - 1);
    const Value* found = arguments_.dict().Find(key);
    if (found == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("format key '", ToAbsl(key), "' is missing"));
    }
    keyed = *found;
    by_key_ = true;
    rest->remove_prefix(end + 1);
  }
  FormatSpec spec;
  spec.align = '>';
  bool zero = false, left = false;
  for (; !rest->empty() && std::string_view("-+ #0").find(rest->front()) != rest->npos;
       rest->remove_prefix(1)) {
    const char flag = rest->front();
    left = left || flag == '-';
    zero = zero || flag == '0';
    spec.alternate = spec.alternate || flag == '#';
    if (flag == '+' || (flag == ' ' && spec.sign == '-')) spec.sign = flag;
  }
  ASSIGN_OR_RETURN(spec.width, WidthOf(rest));
  if (spec.width < 0) {
    left = true;
    spec.width = -spec.width;
  }
  if (left) {
    spec.align = '<';
  } else if (zero) {
    spec.align = '=';
    spec.fill = "0";
  }
  if (!rest->empty() && rest->front() == '.') {
    rest->remove_prefix(1);
    ASSIGN_OR_RETURN(const int64_t precision, WidthOf(rest));
    spec.precision = std::max<int64_t>(precision, 0);
  }
  while (!rest->empty() && std::string_view("hlL").find(rest->front()) != rest->npos) {
    rest->remove_prefix(1);
  }
  if (rest->empty()) return absl::InvalidArgumentError("incomplete format");
  spec.type = rest->front();
  rest->remove_prefix(1);
  if (spec.type == '%') return std::string("%");
  if (keyed.is_missing()) {
    ASSIGN_OR_RETURN(keyed, Next());
  }
  return Converted(keyed, spec);
}

absl::StatusOr<std::string> PercentFormatter::Run() {
  std::string out;
  std::string_view rest = text_;
  while (!rest.empty()) {
    const size_t percent = std::min(rest.find('%'), rest.size());
    RETURN_IF_ERROR(heap_.Append(rest.substr(0, percent), &out));
    rest.remove_prefix(percent);
    if (rest.empty()) break;
    rest.remove_prefix(1);
    ASSIGN_OR_RETURN(const std::string part, Conversion(&rest));
    RETURN_IF_ERROR(heap_.Append(part, &out));
  }
  const bool may_ignore = by_key_ || arguments_.is_dict() || arguments_.kind() == Kind::kList;
  if (used_ < positional_.size() && !may_ignore) {
    return absl::InvalidArgumentError("not all arguments converted during string formatting");
  }
  return out;
}

}  // namespace

absl::StatusOr<Value> BraceFormat(const Value& text, const Arguments& arguments, Heap& heap) {
  ASSIGN_OR_RETURN(std::string out,
                   BraceFormatter(arguments, text.is_safe(), heap).Run(text.text(), 0));
  return heap.String(std::move(out), text.is_safe());
}

absl::StatusOr<Value> PercentFormat(const Value& text, const Value& arguments, Heap& heap) {
  RETURN_IF_ERROR(heap.StepInput(text, {{arguments}, {}}));
  ASSIGN_OR_RETURN(std::string out, PercentFormatter(text, arguments, heap).Run());
  return heap.String(std::move(out), text.is_safe());
}

}  // namespace pergola::jinja
