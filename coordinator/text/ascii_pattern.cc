#include "coordinator/text/ascii_pattern.h"

#include <algorithm>
#include <limits>

#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

constexpr size_t kMaxItems = 128;  // published patterns have up to 40
constexpr size_t kUnbounded = std::numeric_limits<size_t>::max();

bool Take(std::string_view prefix, std::string_view* rest) {
  if (rest->substr(0, prefix.size()) != prefix) return false;
  rest->remove_prefix(prefix.size());
  return true;
}

bool IsAscii(char c) {
  return static_cast<unsigned char>(c) < 128;
}

// The length of the character class, with those nested in it, that `rest` begins with; 0: broken.
size_t ClassLength(std::string_view rest) {
  int depth = 0;
  for (size_t i = 0; i < rest.size(); ++i) {
    if (rest[i] == '\\') {
      ++i;
    } else if (rest[i] == '[') {
      ++depth;
      const size_t first = i + 1 + (rest.substr(i + 1, 1) == "^" ? 1 : 0);
      if (rest.substr(first, 1) == "]") return 0;  // dialects differ
    } else if (rest[i] == ']' && --depth == 0) {
      return i + 1;
    }
  }
  return 0;
}

// The length of the pattern for one character that `rest` begins with; 0: it is something else.
size_t AtomLength(std::string_view rest) {
  if (rest.empty()) return 0;
  if (rest[0] == '[') return ClassLength(rest);
  if (rest[0] == '\\') {
    if (rest.size() < 2) return 0;
    if (rest[1] == 'p' || rest[1] == 'P') {
      const size_t end = rest.find('}');
      return rest.substr(2, 1) != "{" || end == rest.npos ? 0 : end + 1;
    }
    constexpr std::string_view kSimple = R"(sSdDwWrnt\.[](){}*+?|/^$-'")";
    return kSimple.find(rest[1]) == kSimple.npos ? 0 : 2;
  }
  constexpr std::string_view kSpecial = "()^$.*+?{}|]";
  if (kSpecial.find(rest[0]) != kSpecial.npos) return 0;
  size_t end = 0;
  NextCodePoint(rest, &end);
  return end;
}

}  // namespace

class AsciiPattern::Parser {
 public:
  explicit Parser(const MembersOf& members_of) : members_of_(members_of) {}

  bool ReadAll(std::string_view rest, std::vector<Alternative>* alternatives) {
    do {
      if (Take("(?i:", &rest)) {
        // A group is only known where it is a whole alternative: then it is just more of them.
        do {
          if (!ReadAlternative(/*ignore_case=*/true, &rest, alternatives)) return false;
        } while (Take("|", &rest));
        if (!Take(")", &rest) || (!rest.empty() && rest[0] != '|')) return false;
      } else if (!ReadAlternative(/*ignore_case=*/false, &rest, alternatives)) {
        return false;
      }
    } while (Take("|", &rest));
    return rest.empty();
  }

 private:
  bool ReadAlternative(bool ignore_case, std::string_view* rest,
                       std::vector<Alternative>* alternatives) {
    Alternative alternative;
    bool open = true;  // whether the next item may be what a match begins with
    while (!rest->empty() && rest->front() != '|' && !(ignore_case && rest->front() == ')')) {
      Item item;
      if (++items_ > kMaxItems || !ReadItem(ignore_case, rest, &item)) return false;
      if (open && item.negative_lookahead) return false;
      if (open) alternative.starts |= item.set;
      open = open && item.min == 0;
      alternative.items.push_back(item);
    }
    if (open) return false;  // it matches nothing at all, which is another matter
    alternatives->push_back(std::move(alternative));
    return true;
  }

  bool ReadItem(bool ignore_case, std::string_view* rest, Item* item) {
    item->negative_lookahead = Take("(?!", rest);
    const size_t length = AtomLength(*rest);
    // Ignoring case, one character may match two, as \xDF does "ss"; but none of ASCII alone.
    if (length == 0 || (ignore_case && !(length == 1 && IsAscii(rest->front())))) return false;
    const auto set = members_of_(rest->substr(0, length), ignore_case);
    if (!set.has_value()) return false;
    item->set = *set;
    rest->remove_prefix(length);
    if (item->negative_lookahead) return Take(")", rest) && !IsQuantifier(*rest);
    return ReadQuantifier(rest, item);
  }

  static bool IsQuantifier(std::string_view rest) {
    return !rest.empty() && std::string_view("?*+{").find(rest[0]) != std::string_view::npos;
  }

  static bool ReadQuantifier(std::string_view* rest, Item* item) {
    if (!IsQuantifier(*rest)) return true;
    const char kind = rest->front();
    rest->remove_prefix(1);
    if (kind == '{') return ReadCounts(rest, item) && !IsQuantifier(*rest);
    item->min = kind == '+' ? 1 : 0;
    item->max = kind == '?' ? 1 : kUnbounded;
    item->gives_back = !Take("+", rest);
    return !IsQuantifier(*rest);
  }

  // {N} or {M,N} of single digits, behind the brace.
  static bool ReadCounts(std::string_view* rest, Item* item) {
    const auto digit = [&](size_t* value) {
      if (rest->empty() || rest->front() < '0' || rest->front() > '9') return false;
      *value = static_cast<size_t>(rest->front() - '0');
      rest->remove_prefix(1);
      return true;
    };
    if (!digit(&item->min)) return false;
    item->max = item->min;
    if (Take(",", rest) && !digit(&item->max)) return false;
    return Take("}", rest) && item->min <= item->max && item->max > 0;
  }

  const MembersOf& members_of_;
  size_t items_ = 0;
};

// One search.
class AsciiPattern::Matcher {
 public:
  explicit Matcher(std::string_view text) : text_(text) {}

  // The end of the match at `position`, or kNone. If unknown() afterwards, that says nothing.
  size_t Match(const Item* item, const Item* end, size_t position) {
    for (; item != end; ++item) {
      if (item->negative_lookahead) {
        if (Has(*item, position) || unknown_) return kNone;
        continue;
      }
      size_t last = position;
      while (last - position < item->max && Has(*item, last)) ++last;
      if (unknown_ || last - position < item->min) return kNone;
      if (item->gives_back && item + 1 != end) {
        for (size_t next = last;; --next) {
          const size_t found = Match(item + 1, end, next);
          if (found != kNone || unknown_) return found;
          if (next - position == item->min) return kNone;
        }
      }
      position = last;
    }
    return position;
  }

  bool unknown() const { return unknown_; }
  static constexpr size_t kNone = std::numeric_limits<size_t>::max();

 private:
  bool Has(const Item& item, size_t position) {
    if (position == text_.size()) return false;
    if (++steps_ > kMaxSteps || !IsAscii(text_[position])) {
      unknown_ = true;
      return false;
    }
    return item.set[static_cast<unsigned char>(text_[position])];
  }

  const std::string_view text_;
  int steps_ = 0;
  bool unknown_ = false;
};

std::optional<AsciiPattern> AsciiPattern::Create(std::string_view pattern,
                                                 const MembersOf& members_of) {
  AsciiPattern made;
  Parser parser(members_of);
  if (!parser.ReadAll(pattern, &made.alternatives_)) return std::nullopt;
  return made;
}

std::optional<size_t> AsciiPattern::Find(std::string_view text, size_t* begin) const {
  Matcher matcher(text);
  const size_t last = std::min(text.size(), *begin + kMaxSteps);
  for (size_t at = *begin; at < last && IsAscii(text[at]); ++at) {
    const auto first = static_cast<unsigned char>(text[at]);
    for (const Alternative& alternative : alternatives_) {
      if (!alternative.starts[first]) continue;
      const Item* items = alternative.items.data();
      const size_t end = matcher.Match(items, items + alternative.items.size(), at);
      if (matcher.unknown()) return std::nullopt;
      if (end == Matcher::kNone) continue;
      *begin = at;
      return end;
    }
  }
  return std::nullopt;
}

}  // namespace pergola
