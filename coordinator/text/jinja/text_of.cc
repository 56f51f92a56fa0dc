#include "coordinator/text/jinja/text_of.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/unicode.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

class Writer {
 public:
  Writer(Heap& heap, std::string* out) : heap_(heap), out_(*out) {}

  absl::Status Text(const Value& value) {
    if (value.is_undefined() || value.is_missing()) return absl::OkStatus();
    if (value.is_string()) return Put(value.text());
    return Repr(value);
  }
  absl::Status Repr(const Value& value);

 private:
  absl::Status Put(std::string_view text) { return heap_.Append(text, &out_); }
  absl::Status Joined(const std::vector<Value>& items);
  absl::Status Tuple(const std::vector<Value>& items);
  absl::Status Dict(const DictObject& dict);
  absl::Status View(const ViewObject& view);
  absl::Status Range(const RangeObject& range);
  absl::Status Namespace(const NamespaceObject& space);

  Heap& heap_;
  std::string& out_;
  int depth_ = 0;
};

absl::Status Writer::Joined(const std::vector<Value>& items) {
  bool first = true;
  for (const Value& item : items) {
    if (!first) RETURN_IF_ERROR(Put(", "));
    first = false;
    RETURN_IF_ERROR(Repr(item));
  }
  return absl::OkStatus();
}

absl::Status Writer::Tuple(const std::vector<Value>& items) {
  RETURN_IF_ERROR(Put("("));
  RETURN_IF_ERROR(Joined(items));
  return Put(items.size() == 1 ? ",)" : ")");
}

absl::Status Writer::Dict(const DictObject& dict) {
  RETURN_IF_ERROR(Put("{"));
  bool first = true;
  for (const auto& [key, value] : dict.entries()) {
    if (!first) RETURN_IF_ERROR(Put(", "));
    first = false;
    RETURN_IF_ERROR(Repr(key));
    RETURN_IF_ERROR(Put(": "));
    RETURN_IF_ERROR(Repr(value));
  }
  return Put("}");
}

absl::Status Writer::View(const ViewObject& view) {
  static constexpr const char* kNames[] = {"dict_keys([", "dict_values([", "dict_items(["};
  RETURN_IF_ERROR(Put(kNames[static_cast<int>(view.part)]));
  bool first = true;
  for (const auto& [key, value] : view.dict.dict().entries()) {
    if (!first) RETURN_IF_ERROR(Put(", "));
    first = false;
    if (view.part == ViewObject::Part::kItems) RETURN_IF_ERROR(Put("("));
    if (view.part != ViewObject::Part::kValues) RETURN_IF_ERROR(Repr(key));
    if (view.part == ViewObject::Part::kItems) RETURN_IF_ERROR(Put(", "));
    if (view.part != ViewObject::Part::kKeys) RETURN_IF_ERROR(Repr(value));
    if (view.part == ViewObject::Part::kItems) RETURN_IF_ERROR(Put(")"));
  }
  return Put("])");
}

absl::Status Writer::Range(const RangeObject& range) {
  std::string text = absl::StrCat("range(", TextOfInt(range.start), ", ", TextOfInt(range.stop));
  if (range.step != 1) absl::StrAppend(&text, ", ", TextOfInt(range.step));
  return Put(text + ")");
}

absl::Status Writer::Namespace(const NamespaceObject& space) {
  RETURN_IF_ERROR(Put("<Namespace {"));
  bool first = true;
  for (const auto& [name, value] : space.attributes->entries()) {
    if (!first) RETURN_IF_ERROR(Put(", "));
    first = false;
    RETURN_IF_ERROR(Repr(name));
    RETURN_IF_ERROR(Put(": "));
    RETURN_IF_ERROR(Repr(value));
  }
  return Put("}>");
}

absl::Status Writer::Repr(const Value& value) {
  RETURN_IF_ERROR(heap_.Step());
  if (depth_ > heap_.limits().value_depth) {
    return absl::ResourceExhaustedError(absl::StrCat("the template exceeds its budget of ",
                                                     heap_.limits().value_depth, " nested values"));
  }
  ++depth_;
  absl::Status status;
  switch (value.kind()) {
    case Kind::kNone:
      status = Put("None");
      break;
    case Kind::kBool:
      status = Put(value.boolean() ? "True" : "False");
      break;
    case Kind::kInt:
      status = Put(TextOfInt(value.integer()));
      break;
    case Kind::kFloat:
      status = Put(ReprOfFloat(value.real()));
      break;
    case Kind::kString:
      status = Put(value.is_safe() ? absl::StrCat("Markup(", ReprOfString(value.text()), ")")
                                   : ReprOfString(value.text()));
      break;
    case Kind::kList:
      status = Put("[");
      if (status.ok()) status = Joined(value.items());
      if (status.ok()) status = Put("]");
      break;
    case Kind::kTuple:
      status = Tuple(value.items());
      break;
    case Kind::kDict:
      status = Dict(value.dict());
      break;
    case Kind::kView:
      status = View(value.As<ViewObject>());
      break;
    case Kind::kRange:
      status = Range(value.As<RangeObject>());
      break;
    case Kind::kNamespace:
      status = Namespace(value.As<NamespaceObject>());
      break;
    case Kind::kMissing:
    case Kind::kUndefined:
      status = Put("Undefined");
      break;
    default:  // Python shows an address here
      status = Put(absl::StrCat("<", TypeName(value), ">"));
  }
  --depth_;
  return status;
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Heap& heap, std::string* out)
      : style_(style), heap_(heap), out_(*out) {}

  absl::Status Write(const Value& value, int level);

 private:
  absl::Status Put(std::string_view text) { return heap_.Append(text, &out_); }
  absl::Status Line(int level) {
    if (!style_.has_indent) return absl::OkStatus();
    RETURN_IF_ERROR(Put("\n"));
    for (int i = 0; i < level; ++i) RETURN_IF_ERROR(Put(style_.indent));
    return absl::OkStatus();
  }
  absl::Status List(const std::vector<Value>& items, int level);
  absl::Status Dict(const DictObject& dict, int level);
  absl::StatusOr<std::string> KeyOf(const Value& key) const;
  std::string Quoted(std::string_view text) const;

  const JsonStyle& style_;
  Heap& heap_;
  std::string& out_;
};

std::string NumberInJson(double number) {
  if (std::isnan(number)) return "NaN";
  if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
  return ReprOfFloat(number);
}

void AppendUtf16Escape(char32_t c, std::string* out) {
  char text[16];
  if (c >= 0x10000) {
    std::snprintf(text, sizeof(text), "\\u%04x\\u%04x",
                  static_cast<uint32_t>(0xD800 + ((c - 0x10000) >> 10)),
                  static_cast<uint32_t>(0xDC00 + ((c - 0x10000) & 0x3FF)));
  } else {
    std::snprintf(text, sizeof(text), "\\u%04x", static_cast<uint32_t>(c));
  }
  out->append(text);
}

std::string JsonWriter::Quoted(std::string_view text) const {
  std::string out = "\"";
  out.reserve(text.size() + 2);
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = NextCodePoint(text, &i);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (c < 0x20 || (style_.ensure_ascii && c > 0x7E)) {
          AppendUtf16Escape(c, &out);
        } else {
          out.append(text.substr(begin, i - begin));
        }
    }
  }
  out.push_back('"');
  return out;
}

absl::StatusOr<std::string> JsonWriter::KeyOf(const Value& key) const {
  switch (key.kind()) {
    case Kind::kString:
      return key.text();
    case Kind::kNone:
      return "null";
    case Kind::kBool:
      return key.boolean() ? "true" : "false";
    case Kind::kInt:
      return TextOfInt(key.integer());
    case Kind::kFloat:
      return NumberInJson(key.real());
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("tojson: keys must be str, int, float, bool or None, not ", TypeName(key)));
  }
}

absl::Status JsonWriter::List(const std::vector<Value>& items, int level) {
  if (items.empty()) return Put("[]");
  RETURN_IF_ERROR(Put("["));
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) RETURN_IF_ERROR(Put(style_.item_separator));
    RETURN_IF_ERROR(Line(level + 1));
    RETURN_IF_ERROR(Write(items[i], level + 1));
  }
  RETURN_IF_ERROR(Line(level));
  return Put("]");
}

absl::Status JsonWriter::Dict(const DictObject& dict, int level) {
  if (dict.entries().empty()) return Put("{}");
  std::vector<SortItem> entries;
  for (const auto& [key, value] : dict.entries()) entries.push_back({key, value});
  if (style_.sort_keys) RETURN_IF_ERROR(SortItems(/*reverse=*/false, heap_, &entries));
  RETURN_IF_ERROR(Put("{"));
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i > 0) RETURN_IF_ERROR(Put(style_.item_separator));
    RETURN_IF_ERROR(Line(level + 1));
    ASSIGN_OR_RETURN(const std::string key, KeyOf(entries[i].key));
    RETURN_IF_ERROR(Put(Quoted(key)));
    RETURN_IF_ERROR(Put(style_.key_separator));
    RETURN_IF_ERROR(Write(entries[i].item, level + 1));
  }
  RETURN_IF_ERROR(Line(level));
  return Put("}");
}

absl::Status JsonWriter::Write(const Value& value, int level) {
  RETURN_IF_ERROR(heap_.Step());
  switch (value.kind()) {
    case Kind::kNone:
      return Put("null");
    case Kind::kBool:
      return Put(value.boolean() ? "true" : "false");
    case Kind::kInt:
      return Put(TextOfInt(value.integer()));
    case Kind::kFloat:
      return Put(NumberInJson(value.real()));
    case Kind::kString:
      return Put(Quoted(value.text()));
    case Kind::kList:
    case Kind::kTuple:
      return List(value.items(), level);
    case Kind::kDict:
      return Dict(value.dict(), level);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("tojson: object of type ", TypeName(value), " is not JSON serializable"));
  }
}

}  // namespace

absl::Status AppendText(const Value& value, Heap& heap, std::string* out) {
  return Writer(heap, out).Text(value);
}

absl::Status AppendRepr(const Value& value, Heap& heap, std::string* out) {
  return Writer(heap, out).Repr(value);
}

absl::StatusOr<std::string> TextOf(const Value& value, Heap& heap) {
  std::string text;
  RETURN_IF_ERROR(AppendText(value, heap, &text));
  return text;
}

absl::Status AppendJson(const Value& value, const JsonStyle& style, Heap& heap, std::string* out) {
  return JsonWriter(style, heap, out).Write(value, 0);
}

std::string TextOfInt(Int value) {
  if (value == 0) return "0";
  const bool negative = value < 0;
  auto rest = static_cast<unsigned __int128>(value);
  if (negative) rest = -rest;
  std::string text;
  for (; rest != 0; rest /= 10)
    text.push_back(static_cast<char>('0' + static_cast<int>(rest % 10)));
  if (negative) text.push_back('-');
  std::reverse(text.begin(), text.end());
  return text;
}

std::string ReprOfFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char text[64];
  const auto result =
      std::to_chars(text, text + sizeof(text), value, std::chars_format::scientific);
  const std::string_view shortest(text, static_cast<size_t>(result.ptr - text));
  const size_t mark = shortest.find('e');
  int exponent = 0;
  // from_chars takes no plus sign.
  const char* const digits = text + mark + (text[mark + 1] == '+' ? 2 : 1);
  std::from_chars(digits, result.ptr, exponent);
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  const auto fixed = std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed);
  std::string out(text, fixed.ptr);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string ReprOfString(std::string_view text) {
  const bool double_quoted =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = double_quoted ? '"' : '\'';
  std::string out(1, quote);
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = NextCodePoint(text, &i);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (IsPrintable(c)) {
      out.append(text.substr(begin, i - begin));
    } else {
      char escape[16];
      const char* const format = c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(escape, sizeof(escape), format, static_cast<uint32_t>(c));
      out += escape;
    }
  }
  out.push_back(quote);
  return out;
}

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out.push_back(c);
    }
  }
  return out;
}

}  // namespace pergola::jinja
