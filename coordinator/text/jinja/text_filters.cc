// Filters of texts and numbers.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/bind_arguments.h"
#include "coordinator/text/jinja/filters.h"
#include "coordinator/text/jinja/format_spec.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/jinja/operators.h"
#include "coordinator/text/jinja/parse_number.h"
#include "coordinator/text/jinja/text_of.h"
#include "coordinator/text/jinja/text_search.h"
#include "coordinator/text/jinja/unicode.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

// The value as text; a safe one stays safe.
absl::StatusOr<Value> Soft(const FilterCall& call) {
  if (call.value.is_string()) return call.value;
  ASSIGN_OR_RETURN(std::string text, TextOf(call.value, call.heap));
  return call.heap.String(std::move(text));
}

absl::StatusOr<Value> Default(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"default_value", "boolean"}));
  const bool replaces = call.value.is_undefined() || (IsTrue(bound[1]) && !IsTrue(call.value));
  if (!replaces) return call.value;
  return bound[0].is_missing() ? call.heap.String("") : bound[0];
}

absl::StatusOr<Value> String(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  return Soft(call);
}

absl::StatusOr<Value> Case(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  ASSIGN_OR_RETURN(const Value text, Soft(call));
  return CallStringMethod(text, call.name, {}, call.heap);
}

absl::StatusOr<Value> Title(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  ASSIGN_OR_RETURN(const Value text, Soft(call));
  std::string out;
  bool begins = true;
  for (size_t i = 0; i < text.text().size();) {
    const size_t begin = i;
    const char32_t c = NextCodePoint(text.text(), &i);
    const std::string_view character = std::string_view(text.text()).substr(begin, i - begin);
    out += begins ? ToUpper(character) : ToLower(character);
    begins = IsPythonSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  }
  return call.heap.String(std::move(out));
}

absl::StatusOr<Value> Trim(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"chars"}));
  ASSIGN_OR_RETURN(const Value text, Soft(call));
  Arguments arguments;
  if (!bound[0].is_missing()) arguments.positional.push_back(bound[0]);
  return CallStringMethod(text, "strip", arguments, call.heap);
}

absl::StatusOr<Value> Replace(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(const std::string text, TextOf(call.value, call.heap));
  ASSIGN_OR_RETURN(const std::string old, TextOf(bound[0], call.heap));
  ASSIGN_OR_RETURN(const std::string with, TextOf(bound[1], call.heap));
  const Value& limit = bound[2].is_none() ? Value() : bound[2];
  ASSIGN_OR_RETURN(const int64_t count, CountOr(limit, -1, call.name));
  ASSIGN_OR_RETURN(std::string out, ReplaceText(text, old, with, count, call.heap));
  return call.heap.String(std::move(out));
}

absl::StatusOr<Value> Center(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"width"}));
  ASSIGN_OR_RETURN(const Value text, Soft(call));
  Arguments arguments;
  arguments.positional.push_back(bound[0].is_missing() ? Value::Integer(80) : bound[0]);
  return CallStringMethod(text, "center", arguments, call.heap);
}

absl::StatusOr<Value> Indent(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"width", "first", "blank"}));
  if (!call.value.is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat("indent expects a str, not ", TypeName(call.value)));
  }
  std::string indention;
  if (bound[0].is_string()) {
    indention = bound[0].text();
  } else {
    ASSIGN_OR_RETURN(const int64_t width, CountOr(bound[0], 4, call.name));
    RETURN_IF_ERROR(call.heap.CheckBytes(static_cast<uint64_t>(std::max<int64_t>(width, 0))));
    indention.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  const std::string text = call.value.text() + "\n";
  const bool blank = IsTrue(bound[2]);
  std::string out = IsTrue(bound[1]) ? indention : "";
  bool first = true;
  for (const std::string_view line : SplitLines(text, false)) {
    if (!first) {
      RETURN_IF_ERROR(call.heap.Append("\n", &out));
      if (blank || !line.empty()) RETURN_IF_ERROR(call.heap.Append(indention, &out));
    }
    first = false;
    RETURN_IF_ERROR(call.heap.Append(line, &out));
  }
  return call.heap.String(std::move(out), call.value.is_safe());
}

absl::StatusOr<Value> Truncate(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"length", "killwords", "end", "leeway"}));
  ASSIGN_OR_RETURN(const int64_t length, CountOr(bound[0], 255, call.name));
  ASSIGN_OR_RETURN(const std::string end, StringOr(bound[2], "...", call.name));
  const Value& leeway_value = bound[3].is_none() ? Value() : bound[3];
  ASSIGN_OR_RETURN(const int64_t leeway, CountOr(leeway_value, 5, call.name));
  const int64_t kept = length - CountCodePoints(end);
  if (kept < 0 || leeway < 0) {
    return absl::InvalidArgumentError("truncate expects length >= len(end) and leeway >= 0");
  }
  ASSIGN_OR_RETURN(const Value text, Soft(call));
  if (text.text_length() <= length + leeway) return text;
  std::string out = text.text().substr(0, OffsetOf(text.text(), kept, false));
  if (!IsTrue(bound[1])) out = out.substr(0, std::min(out.rfind(' '), out.size()));
  return call.heap.String(out + end);
}

absl::StatusOr<Value> WordCount(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  ASSIGN_OR_RETURN(const Value text, Soft(call));
  int64_t count = 0;
  bool in_word = false;
  for (size_t i = 0; i < text.text().size();) {
    const char32_t c = NextCodePoint(text.text(), &i);
    const bool is_word = c == '_' || IsAlphabetic(c) || IsNumeric(c);
    count += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return Value::Integer(count);
}

absl::StatusOr<Value> Safe(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  if (call.value.is_safe()) return call.value;
  ASSIGN_OR_RETURN(std::string text, TextOf(call.value, call.heap));
  return call.heap.String(std::move(text), /*safe=*/true);
}

absl::StatusOr<Value> Escape(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  if (call.value.is_safe() && call.name != "forceescape") return call.value;
  ASSIGN_OR_RETURN(const std::string text, TextOf(call.value, call.heap));
  RETURN_IF_ERROR(call.heap.CheckBytes(text.size() * 5));
  return call.heap.String(EscapeHtml(text), /*safe=*/true);
}

absl::StatusOr<Value> Format(const FilterCall& call) {
  ASSIGN_OR_RETURN(const Value text, Soft(call));
  if (call.arguments.keyword.empty()) {
    return PercentFormat(text, call.heap.Tuple(call.arguments.positional), call.heap);
  }
  if (!call.arguments.positional.empty()) {
    return absl::InvalidArgumentError(
        "format can't handle positional and keyword arguments at the same time");
  }
  auto dict = std::make_shared<DictObject>();
  for (const auto& [name, value] : call.arguments.keyword) {
    dict->Set(call.heap.String(name), value);
  }
  return PercentFormat(text, call.heap.Dict(std::move(dict)), call.heap);
}

void AppendQuoted(std::string_view text, bool in_query, std::string* out) {
  for (const char c : text) {
    const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                          (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-' || c == '~' ||
                          (c == '/' && !in_query);
    if (is_plain) {
      out->push_back(c);
    } else if (c == ' ' && in_query) {
      out->push_back('+');
    } else {
      constexpr char kDigits[] = "0123456789ABCDEF";
      const auto byte = static_cast<uint8_t>(c);
      *out += {'%', kDigits[byte >> 4], kDigits[byte & 15]};
    }
  }
}

absl::StatusOr<Value> UrlEncode(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  std::string out;
  if (call.value.is_string() || !IsIterable(call.value)) {
    ASSIGN_OR_RETURN(const std::string text, TextOf(call.value, call.heap));
    AppendQuoted(text, false, &out);
    return call.heap.String(std::move(out));
  }
  const Value pairs =
      call.value.is_dict() ? call.heap.View(call.value, ViewObject::Part::kItems) : call.value;
  ASSIGN_OR_RETURN(const auto items, ItemsOf(pairs, call.heap));
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(const auto parts, ItemsOf(item, call.heap));
    if (parts.size() != 2) {
      return absl::InvalidArgumentError("urlencode expects pairs of a key and a value");
    }
    ASSIGN_OR_RETURN(const std::string key, TextOf(parts[0], call.heap));
    ASSIGN_OR_RETURN(const std::string value, TextOf(parts[1], call.heap));
    if (!out.empty()) out.push_back('&');
    AppendQuoted(key, true, &out);
    out.push_back('=');
    AppendQuoted(value, true, &out);
    RETURN_IF_ERROR(call.heap.CheckBytes(out.size()));
  }
  return call.heap.String(std::move(out));
}

absl::StatusOr<Value> ToInt(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"default", "base"}));
  ASSIGN_OR_RETURN(const int64_t base, CountOr(bound[1], 10, call.name));
  const Value fallback = bound[0].is_missing() ? Value::Integer(0) : bound[0];
  if (call.value.is_undefined()) return absl::InvalidArgumentError(call.value.text());
  if (call.value.is_integral()) return Value::Integer(call.value.integer());
  double real = 0;
  if (call.value.is_string()) {
    const auto parsed = ParseInt(call.value.text(), base);
    if (parsed) return Value::Integer(*parsed);
    const auto as_float = ParseFloat(call.value.text());
    if (!as_float || !std::isfinite(*as_float)) return fallback;
    real = *as_float;
  } else if (call.value.kind() == Kind::kFloat) {
    real = call.value.real();
    if (std::isnan(real)) return fallback;
  } else {
    return fallback;
  }
  if (std::fabs(real) > 1e38) {
    return absl::InvalidArgumentError("int: the number does not fit in 128 bits");
  }
  return Value::Integer(static_cast<Int>(real));
}

absl::StatusOr<Value> ToFloat(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"default"}));
  if (call.value.is_undefined()) return absl::InvalidArgumentError(call.value.text());
  if (call.value.is_number()) return Value::Float(call.value.real());
  if (call.value.is_string()) {
    const auto parsed = ParseFloat(call.value.text());
    if (parsed) return Value::Float(*parsed);
  }
  return bound[0].is_missing() ? Value::Float(0) : bound[0];
}

absl::StatusOr<Value> Abs(const FilterCall& call) {
  RETURN_IF_ERROR(call.Bind({}).status());
  if (call.value.is_undefined()) return absl::InvalidArgumentError(call.value.text());
  const bool negative = call.value.is_number() && call.value.real() < 0;
  return Signed(negative, call.value);
}

absl::StatusOr<Value> Round(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"precision", "method"}));
  ASSIGN_OR_RETURN(const int64_t precision, CountOr(bound[0], 0, call.name));
  ASSIGN_OR_RETURN(const std::string method, StringOr(bound[1], "common", call.name));
  if (method != "common" && method != "ceil" && method != "floor") {
    return absl::InvalidArgumentError("round: method must be common, ceil or floor");
  }
  if (!call.value.is_number()) {
    return absl::InvalidArgumentError(
        absl::StrCat("round expects a number, not ", TypeName(call.value)));
  }
  // Beyond that many digits a double has none to lose.
  constexpr int64_t kMostDigits = 323;
  if (precision < 0 || precision > kMostDigits) {
    return absl::InvalidArgumentError(
        absl::StrCat("round: the precision ", precision, " is not from 0 to ", kMostDigits));
  }
  if (method == "common") {
    if (call.value.is_integral()) return Value::Integer(call.value.integer());
    if (!std::isfinite(call.value.real())) return call.value;
    const std::string digits = FixedDigits(call.value.real(), precision, 'f');
    return Value::Float(std::strtod(digits.c_str(), nullptr));
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  const double scaled = call.value.real() * scale;
  return Value::Float((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
}

absl::StatusOr<Value> FileSize(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"binary"}));
  ASSIGN_OR_RETURN(const Value number, ToFloat({call.name, call.value, {}, call.heap}));
  const bool binary = IsTrue(bound[0]);
  const double base = binary ? 1024 : 1000, bytes = number.real();
  if (bytes == 1) return call.heap.String("1 Byte");
  if (bytes < base) {
    return call.heap.String(absl::StrCat(TextOfInt(static_cast<Int>(bytes)), " Bytes"));
  }
  static constexpr const char* kDecimal[] = {"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"};
  static constexpr const char* kBinary[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"};
  double unit = base;
  int i = 0;
  for (; i < 8; ++i) {
    unit *= base;
    if (bytes < unit || i == 7) break;
  }
  return call.heap.String(absl::StrCat(FixedDigits(base * bytes / unit, 1, 'f'), " ",
                                       (binary ? kBinary : kDecimal)[i]));
}

absl::StatusOr<Value> ToJson(const FilterCall& call) {
  ASSIGN_OR_RETURN(const auto bound,
                   call.Bind({"ensure_ascii", "indent", "separators", "sort_keys"}));
  JsonStyle style;
  style.ensure_ascii = IsTrue(bound[0]);
  style.sort_keys = IsTrue(bound[3]);
  const Value& indent = bound[1];
  style.has_indent = !indent.is_missing() && !indent.is_none();
  if (style.has_indent) {
    style.item_separator = ",";
    if (indent.is_string()) {
      style.indent = indent.text();
    } else {
      ASSIGN_OR_RETURN(const int64_t width, CountOr(indent, 0, call.name));
      RETURN_IF_ERROR(call.heap.CheckBytes(static_cast<uint64_t>(std::max<int64_t>(width, 0))));
      style.indent.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
  }
  if (!bound[2].is_missing() && !bound[2].is_none()) {
    if (!bound[2].is_sequence() || bound[2].items().size() != 2 ||
        !bound[2].items()[0].is_string() || !bound[2].items()[1].is_string()) {
      return absl::InvalidArgumentError("tojson: separators must be two str");
    }
    style.item_separator = bound[2].items()[0].text();
    style.key_separator = bound[2].items()[1].text();
  }
  std::string out;
  RETURN_IF_ERROR(AppendJson(call.value, style, call.heap, &out));
  return call.heap.String(std::move(out));
}

}  // namespace

Filter FindTextFilter(std::string_view name) {
  static const std::map<std::string_view, Filter> kFilters = {
      {"abs", Abs},
      {"capitalize", Case},
      {"center", Center},
      {"d", Default},
      {"default", Default},
      {"e", Escape},
      {"escape", Escape},
      {"filesizeformat", FileSize},
      {"float", ToFloat},
      {"forceescape", Escape},
      {"format", Format},
      {"indent", Indent},
      {"int", ToInt},
      {"lower", Case},
      {"replace", Replace},
      {"round", Round},
      {"safe", Safe},
      {"string", String},
      {"title", Title},
      {"tojson", ToJson},
      {"trim", Trim},
      {"truncate", Truncate},
      {"upper", Case},
      {"urlencode", UrlEncode},
      {"wordcount", WordCount},
  };
  const auto found = kFilters.find(name);
  return found == kFilters.end() ? nullptr : found->second;
}

}  // namespace pergola::jinja
