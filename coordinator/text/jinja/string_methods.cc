// Python's str methods.
#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "coordinator/text/jinja/bind_arguments.h"
#include "coordinator/text/jinja/iterate.h"
#include "coordinator/text/jinja/methods.h"
#include "coordinator/text/jinja/text_of.h"
#include "coordinator/text/jinja/text_search.h"
#include "coordinator/text/jinja/unicode.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

// What a method works on.
struct Call {
  const Value& receiver;
  const std::string& text;
  const std::string& name;
  const Arguments& arguments;
  Heap& heap;

  absl::StatusOr<std::vector<Value>> Bind(std::initializer_list<const char*> names, size_t required,
                                          bool by_name = false) const {
    return BindArguments({name.c_str(), names, required, by_name}, arguments);
  }
  // A result of the same kind of text: safe if the receiver is.
  Value Text(std::string result) const {
    return heap.String(std::move(result), receiver.is_safe());
  }
  bool is_ascii() const { return static_cast<size_t>(receiver.text_length()) == text.size(); }
};

using Method = absl::StatusOr<Value> (*)(const Call&);

absl::StatusOr<Value> Case(const Call& call) {
  RETURN_IF_ERROR(call.Bind({}, 0).status());
  if (call.name == "upper") return call.Text(ToUpper(call.text));
  if (call.name == "lower") return call.Text(ToLower(call.text));
  if (call.name == "capitalize") return call.Text(Capitalized(call.text));
  std::string out;
  bool in_word = false;
  for (size_t i = 0; i < call.text.size();) {
    const size_t begin = i;
    const char32_t c = NextCodePoint(call.text, &i);
    const std::string_view character = std::string_view(call.text).substr(begin, i - begin);
    if (call.name == "swapcase") {
      if (IsUpper(c)) {
        out += ToLower(character);
      } else {
        AppendUpper(c, &out);
      }
    } else if (in_word) {  // title
      out += ToLower(character);
    } else {
      AppendTitle(c, &out);
    }
    in_word = IsUpper(c) || IsLower(c) || IsTitle(c);
  }
  return call.Text(std::move(out));
}

absl::StatusOr<Value> Strip(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"chars"}, 0));
  const bool left = call.name != "rstrip", right = call.name != "lstrip";
  if (bound[0].is_missing() || bound[0].is_none()) {
    return call.Text(StripText(call.text, nullptr, left, right));
  }
  ASSIGN_OR_RETURN(const std::string characters, StringOr(bound[0], "", call.name));
  RETURN_IF_ERROR(call.heap.StepBytes(call.text.size() * (1 + characters.size() / 16)));
  return call.Text(StripText(call.text, &characters, left, right));
}

// Parts by whitespace, from the right if `from_right`.
std::vector<std::string_view> SplitBySpace(std::string_view text, int64_t most, bool from_right) {
  std::vector<std::string_view> parts;
  std::string_view rest = from_right ? StripRight(text) : StripLeft(text);
  while (!rest.empty()) {
    if (most == 0) {
      parts.push_back(rest);
      break;
    }
    --most;
    size_t edge = from_right ? rest.size() : 0;
    while (from_right ? edge > 0 : edge < rest.size()) {
      size_t next = edge;
      const char32_t c = from_right ? PreviousCodePoint(rest, &next) : NextCodePoint(rest, &next);
      if (IsPythonSpace(c)) break;
      edge = next;
    }
    parts.push_back(from_right ? rest.substr(edge) : rest.substr(0, edge));
    rest = from_right ? StripRight(rest.substr(0, edge)) : StripLeft(rest.substr(edge));
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

absl::StatusOr<size_t> FindFrom(bool from_right, std::string_view text, std::string_view wanted,
                                Heap& heap) {
  if (from_right) return FindLastText(text, wanted, heap);
  return FindText(text, wanted);
}

absl::StatusOr<std::vector<std::string_view>> SplitByText(const Call& call,
                                                          std::string_view separator, int64_t most,
                                                          bool from_right) {
  std::string_view text = call.text;
  std::vector<std::string_view> parts;
  while (most != 0) {
    ASSIGN_OR_RETURN(const size_t found, FindFrom(from_right, text, separator, call.heap));
    if (found == std::string_view::npos) break;
    --most;
    const std::string_view left = text.substr(0, found);
    const std::string_view right = text.substr(found + separator.size());
    parts.push_back(from_right ? right : left);
    text = from_right ? left : right;
  }
  parts.push_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

absl::StatusOr<Value> ListOfTexts(const Call& call, const std::vector<std::string_view>& parts) {
  RETURN_IF_ERROR(call.heap.StepItems(parts.size() * 4));
  RETURN_IF_ERROR(call.heap.CheckBytes(parts.size() * sizeof(Value) + call.text.size()));
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) {
    items.push_back(call.Text(std::string(part)));
    RETURN_IF_ERROR(call.heap.Step(0));
  }
  return call.heap.List(std::move(items));
}

absl::StatusOr<Value> Split(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"sep", "maxsplit"}, 0, true));
  ASSIGN_OR_RETURN(const int64_t most, CountOr(bound[1], -1, call.name));
  const bool from_right = call.name == "rsplit";
  if (bound[0].is_missing() || bound[0].is_none()) {
    return ListOfTexts(call, SplitBySpace(call.text, most, from_right));
  }
  ASSIGN_OR_RETURN(const std::string separator, StringOr(bound[0], "", call.name));
  if (separator.empty()) return absl::InvalidArgumentError("empty separator");
  ASSIGN_OR_RETURN(const auto parts, SplitByText(call, separator, most, from_right));
  return ListOfTexts(call, parts);
}

absl::StatusOr<Value> Lines(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"keepends"}, 0, true));
  return ListOfTexts(call, SplitLines(call.text, IsTrue(bound[0])));
}

absl::StatusOr<Value> Partition(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"sep"}, 1));
  ASSIGN_OR_RETURN(const std::string separator, StringOr(bound[0], "", call.name));
  if (separator.empty()) return absl::InvalidArgumentError("empty separator");
  const bool from_right = call.name == "rpartition";
  ASSIGN_OR_RETURN(const size_t found, FindFrom(from_right, call.text, separator, call.heap));
  const Value whole = call.Text(call.text), empty = call.Text("");
  if (found == std::string::npos) {
    return from_right ? call.heap.Tuple({empty, empty, whole})
                      : call.heap.Tuple({whole, empty, empty});
  }
  return call.heap.Tuple({call.Text(call.text.substr(0, found)), call.Text(separator),
                          call.Text(call.text.substr(found + separator.size()))});
}

absl::StatusOr<Value> Join(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"iterable"}, 1));
  ASSIGN_OR_RETURN(const auto items, ItemsOf(bound[0], call.heap));
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!items[i].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "sequence item ", i, ": expected str instance, ", TypeName(items[i]), " found"));
    }
    if (i > 0) RETURN_IF_ERROR(call.heap.Append(call.text, &out));
    const bool escapes = call.receiver.is_safe() && !items[i].is_safe();
    RETURN_IF_ERROR(
        call.heap.Append(escapes ? EscapeHtml(items[i].text()) : items[i].text(), &out));
  }
  return call.Text(std::move(out));
}

absl::StatusOr<Value> Replace(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"old", "new", "count"}, 2));
  ASSIGN_OR_RETURN(const std::string old, StringOr(bound[0], "", call.name));
  ASSIGN_OR_RETURN(std::string with, StringOr(bound[1], "", call.name));
  ASSIGN_OR_RETURN(const int64_t count, CountOr(bound[2], -1, call.name));
  if (call.receiver.is_safe() && !bound[1].is_safe()) with = EscapeHtml(with);
  ASSIGN_OR_RETURN(std::string out, ReplaceText(call.text, old, with, count, call.heap));
  return call.Text(std::move(out));
}

// The part of the text that optional start and stop arguments leave.
absl::StatusOr<std::pair<std::string_view, int64_t>> PartOf(const Call& call, const Value& start,
                                                            const Value& stop) {
  ASSIGN_OR_RETURN(const SliceIndices indices,
                   ResolveSlice(start, stop, Value(), call.receiver.text_length()));
  const std::string_view text = call.text;
  const size_t begin = OffsetOf(text, indices.start, call.is_ascii());
  const std::string_view rest = text.substr(begin);
  return std::make_pair(rest.substr(0, OffsetOf(rest, indices.count, call.is_ascii())),
                        indices.start);
}

absl::StatusOr<Value> StartsOrEnds(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"affix", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const auto part, PartOf(call, bound[1], bound[2]));
  std::vector<Value> affixes = {bound[0]};
  if (bound[0].kind() == Kind::kTuple) affixes = bound[0].items();
  for (const Value& affix : affixes) {
    if (!affix.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(
          call.name, " first arg must be str or a tuple of str, not ", TypeName(affix)));
    }
    const std::string& wanted = affix.text();
    const std::string_view text = part.first;
    if (wanted.size() > text.size()) continue;
    const size_t at = call.name == "startswith" ? 0 : text.size() - wanted.size();
    if (text.substr(at, wanted.size()) == wanted) return Value::Bool(true);
  }
  return Value::Bool(false);
}

absl::StatusOr<Value> Find(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const std::string wanted, StringOr(bound[0], "", call.name));
  ASSIGN_OR_RETURN(const auto part, PartOf(call, bound[1], bound[2]));
  const auto [text, start] = part;
  const bool last = call.name[0] == 'r';
  ASSIGN_OR_RETURN(const size_t found, FindFrom(last, text, wanted, call.heap));
  if (found != std::string_view::npos) {
    return Value::Integer(start + CountCodePoints(text.substr(0, found)));
  }
  if (call.name == "index" || call.name == "rindex") {
    return absl::InvalidArgumentError("substring not found");
  }
  return Value::Integer(-1);
}

absl::StatusOr<Value> Count(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"sub", "start", "end"}, 1));
  ASSIGN_OR_RETURN(const std::string wanted, StringOr(bound[0], "", call.name));
  ASSIGN_OR_RETURN(const auto part, PartOf(call, bound[1], bound[2]));
  const std::string_view text = part.first;
  if (wanted.empty()) return Value::Integer(CountCodePoints(text) + 1);
  int64_t count = 0;
  for (size_t at = 0; (at = FindText(text, wanted, at)) != std::string_view::npos;
       at += wanted.size()) {
    ++count;
  }
  return Value::Integer(count);
}

absl::StatusOr<Value> RemoveAffix(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"affix"}, 1));
  ASSIGN_OR_RETURN(const std::string affix, StringOr(bound[0], "", call.name));
  if (affix.empty() || affix.size() > call.text.size()) return call.receiver;
  const size_t kept = call.text.size() - affix.size();
  if (call.name == "removeprefix") {
    const bool found = call.text.compare(0, affix.size(), affix) == 0;
    return found ? call.Text(call.text.substr(affix.size())) : call.receiver;
  }
  const bool found = call.text.compare(kept, affix.size(), affix) == 0;
  return found ? call.Text(call.text.substr(0, kept)) : call.receiver;
}

absl::StatusOr<Value> Pad(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"width", "fillchar"}, 1));
  ASSIGN_OR_RETURN(const int64_t width, CountOr(bound[0], 0, call.name));
  ASSIGN_OR_RETURN(std::string fill, StringOr(bound[1], " ", call.name));
  if (CountCodePoints(fill) != 1) {
    return absl::InvalidArgumentError("the fill character must be exactly one character long");
  }
  const int64_t missing = width - call.receiver.text_length();
  if (missing <= 0) return call.receiver;
  RETURN_IF_ERROR(call.heap.CheckBytes(static_cast<uint64_t>(missing) * fill.size()));
  int64_t left = 0;
  if (call.name == "rjust") left = missing;
  // CPython puts the odd one left if the width is odd.
  if (call.name == "center") left = missing / 2 + (missing & width & 1);
  std::string out;
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += call.text;
  for (int64_t i = left; i < missing; ++i) out += fill;
  return call.Text(std::move(out));
}

absl::StatusOr<Value> ZeroFill(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"width"}, 1));
  ASSIGN_OR_RETURN(const int64_t width, CountOr(bound[0], 0, call.name));
  const int64_t missing = width - call.receiver.text_length();
  if (missing <= 0) return call.receiver;
  RETURN_IF_ERROR(call.heap.CheckBytes(static_cast<uint64_t>(missing)));
  const bool is_signed = !call.text.empty() && (call.text[0] == '-' || call.text[0] == '+');
  const size_t sign = is_signed ? 1 : 0;
  return call.Text(
      absl::StrCat(call.text.substr(0, sign), std::string(missing, '0'), call.text.substr(sign)));
}

absl::StatusOr<Value> ExpandTabs(const Call& call) {
  ASSIGN_OR_RETURN(const auto bound, call.Bind({"tabsize"}, 0, true));
  ASSIGN_OR_RETURN(const int64_t size, CountOr(bound[0], 8, call.name));
  std::string out;
  int64_t column = 0;
  for (const char c : call.text) {
    if (c == '\t') {
      if (size <= 0) continue;
      const int64_t blanks = size - column % size;
      RETURN_IF_ERROR(call.heap.CheckBytes(out.size() + static_cast<uint64_t>(blanks)));
      out.append(static_cast<size_t>(blanks), ' ');
      column += blanks;
      continue;
    }
    if ((static_cast<uint8_t>(c) & 0xC0) != 0x80) ++column;
    if (c == '\n' || c == '\r') column = 0;
    out.push_back(c);
  }
  return call.Text(std::move(out));
}

// isupper, islower and istitle: some letters have a case, and theirs is right.
bool HasCase(const Call& call) {
  bool found = false, previous_cased = false;
  for (size_t i = 0; i < call.text.size();) {
    const char32_t c = NextCodePoint(call.text, &i);
    const bool upper = IsUpper(c), lower = IsLower(c), title = IsTitle(c);
    const bool cased = upper || lower || title;
    if (call.name == "isupper" && (lower || title)) return false;
    if (call.name == "islower" && (upper || title)) return false;
    if (call.name == "istitle" && cased && (lower != previous_cased)) return false;
    found = found || cased;
    previous_cased = cased;
  }
  return found;
}

absl::StatusOr<Value> Is(const Call& call) {
  RETURN_IF_ERROR(call.Bind({}, 0).status());
  if (call.name == "isascii") return Value::Bool(call.is_ascii());
  if (call.name == "isprintable" && call.text.empty()) return Value::Bool(true);
  if (call.name == "isupper" || call.name == "islower" || call.name == "istitle") {
    return Value::Bool(HasCase(call));
  }
  static const std::map<std::string_view, bool (*)(char32_t)> kTests = {
      {"isalpha", IsAlphabetic},
      {"isdecimal", IsDecimal},
      {"isdigit", IsDigit},
      {"isnumeric", IsNumeric},
      {"isprintable", IsPrintable},
      {"isspace", IsPythonSpace},
      {"isalnum", [](char32_t c) { return IsAlphabetic(c) || IsNumeric(c) || IsDigit(c); }},
  };
  const auto test = kTests.at(call.name);
  for (size_t i = 0; i < call.text.size();) {
    if (!test(NextCodePoint(call.text, &i))) return Value::Bool(false);
  }
  return Value::Bool(!call.text.empty());
}

absl::StatusOr<Value> Format(const Call& call) {
  return BraceFormat(call.receiver, call.arguments, call.heap);
}

const std::map<std::string_view, Method>& Methods() {
  static const std::map<std::string_view, Method> kMethods = {
      {"upper", Case},
      {"lower", Case},
      {"capitalize", Case},
      {"title", Case},
      {"swapcase", Case},
      {"strip", Strip},
      {"lstrip", Strip},
      {"rstrip", Strip},
      {"split", Split},
      {"rsplit", Split},
      {"splitlines", Lines},
      {"partition", Partition},
      {"rpartition", Partition},
      {"join", Join},
      {"replace", Replace},
      {"startswith", StartsOrEnds},
      {"endswith", StartsOrEnds},
      {"find", Find},
      {"rfind", Find},
      {"index", Find},
      {"rindex", Find},
      {"count", Count},
      {"removeprefix", RemoveAffix},
      {"removesuffix", RemoveAffix},
      {"center", Pad},
      {"ljust", Pad},
      {"rjust", Pad},
      {"zfill", ZeroFill},
      {"expandtabs", ExpandTabs},
      {"isalnum", Is},
      {"isalpha", Is},
      {"isascii", Is},
      {"isdecimal", Is},
      {"isdigit", Is},
      {"islower", Is},
      {"isnumeric", Is},
      {"isprintable", Is},
      {"isspace", Is},
      {"istitle", Is},
      {"isupper", Is},
      {"format", Format},
  };
  return kMethods;
}

}  // namespace

bool IsStringMethod(std::string_view name) {
  return Methods().count(name) > 0;
}

absl::StatusOr<Value> CallStringMethod(const Value& receiver, const std::string& name,
                                       const Arguments& arguments, Heap& heap) {
  RETURN_IF_ERROR(heap.StepInput(receiver, arguments));
  return Methods().at(name)({receiver, receiver.text(), name, arguments, heap});
}

}  // namespace pergola::jinja
