#include "coordinator/text/jinja/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "coordinator/text/jinja/special_case.h"
#include "coordinator/text/utf8.h"

namespace pergola::jinja {
namespace {

utf8proc_category_t CategoryOf(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

// Other_Uppercase and Other_Lowercase: letters that are cased without a mapping's category.
bool IsOtherUpper(char32_t c) {
  return (c >= 0x2160 && c <= 0x216F) || (c >= 0x24B6 && c <= 0x24CF) ||
         (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

bool IsOtherLower(char32_t c) {
  return c == 0xAA || c == 0xBA || (c >= 0x2B0 && c <= 0x2B8) || c == 0x2C0 || c == 0x2C1 ||
         (c >= 0x2E0 && c <= 0x2E4) || c == 0x345 || c == 0x37A || (c >= 0x1D2C && c <= 0x1D6A) ||
         c == 0x1D78 || (c >= 0x1D9B && c <= 0x1DBF) || c == 0x2071 || c == 0x207F ||
         (c >= 0x2090 && c <= 0x209C) || (c >= 0x2170 && c <= 0x217F) ||
         (c >= 0x24D0 && c <= 0x24E9);
}

bool IsCased(char32_t c) {
  return IsUpper(c) || IsLower(c) || IsTitle(c);
}

// Characters that words skip when a sigma looks for letters beside it.
bool IsCaseIgnorable(char32_t c) {
  if (c == '\'' || c == '.' || c == ':' || c == '^' || c == '`' || c == 0xA8 || c == 0xAD ||
      c == 0xAF || c == 0xB4 || c == 0xB7 || c == 0xB8 || c == 0x2018 || c == 0x2019 ||
      c == 0x2024 || c == 0x2027) {
    return true;
  }
  const utf8proc_category_t category = CategoryOf(c);
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_ME ||
         category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_LM ||
         category == UTF8PROC_CATEGORY_SK;
}

// SpecialCasing.txt, Final_Sigma: a cased letter before, none after.
bool IsFinalSigma(std::string_view text, size_t begin, size_t end) {
  bool found = false;
  while (begin > 0) {
    const char32_t c = PreviousCodePoint(text, &begin);
    if (IsCaseIgnorable(c)) continue;
    found = IsCased(c);
    break;
  }
  if (!found) return false;
  while (end < text.size()) {
    const char32_t c = NextCodePoint(text, &end);
    if (IsCaseIgnorable(c)) continue;
    return !IsCased(c);
  }
  return true;
}

template <size_t n>
const char* FindSpecial(const SpecialCase (&table)[n], char32_t c) {
  const auto* found =
      std::lower_bound(std::begin(table), std::end(table), c,
                       [](const SpecialCase& entry, char32_t key) { return entry.from < key; });
  return found != std::end(table) && found->from == c ? found->to : nullptr;
}

}  // namespace

bool IsPythonSpace(char32_t c) {
  return IsWhitespace(c) || (c >= 0x1C && c <= 0x1F);
}

bool IsPrintable(char32_t c) {
  if (c == ' ') return true;
  switch (CategoryOf(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool IsDecimal(char32_t c) {
  return CategoryOf(c) == UTF8PROC_CATEGORY_ND;
}

bool IsDigit(char32_t c) {
  // Superscripts, subscripts and circled digits are digits without being decimal.
  return IsDecimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
         (c >= 0x2460 && c <= 0x2468) || (c >= 0x2474 && c <= 0x247C) ||
         (c >= 0x2488 && c <= 0x2490) || c == 0x24EA || (c >= 0x24F5 && c <= 0x24FD) ||
         c == 0x24FF || (c >= 0x2776 && c <= 0x277E) || (c >= 0x2780 && c <= 0x2788) ||
         (c >= 0x278A && c <= 0x2792) || (c >= 0x1369 && c <= 0x1371) || c == 0x19DA;
}

bool IsAlphabetic(char32_t c) {
  switch (CategoryOf(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return true;
    default:
      return false;
  }
}

bool IsUpper(char32_t c) {
  return CategoryOf(c) == UTF8PROC_CATEGORY_LU || IsOtherUpper(c);
}

bool IsLower(char32_t c) {
  return CategoryOf(c) == UTF8PROC_CATEGORY_LL || IsOtherLower(c);
}

bool IsTitle(char32_t c) {
  return CategoryOf(c) == UTF8PROC_CATEGORY_LT;
}

void AppendUpper(char32_t c, std::string* out) {
  if (const char* special = FindSpecial(kSpecialUpper, c)) {
    out->append(special);
  } else {
    AppendCodePoint(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
  }
}

void AppendTitle(char32_t c, std::string* out) {
  if (const char* special = FindSpecial(kSpecialTitle, c)) {
    out->append(special);
  } else {
    AppendCodePoint(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))), out);
  }
}

std::string ToUpper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) AppendUpper(NextCodePoint(text, &i), &out);
  return out;
}

std::string ToLower(std::string_view text) {
  constexpr char32_t kCapitalSigma = 0x3A3, kSigma = 0x3C3, kFinalSigma = 0x3C2;
  constexpr char32_t kCapitalDottedI = 0x130, kCombiningDot = 0x307;
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t begin = i;
    const char32_t c = NextCodePoint(text, &i);
    if (c == kCapitalSigma) {
      AppendCodePoint(IsFinalSigma(text, begin, i) ? kFinalSigma : kSigma, &out);
    } else if (c == kCapitalDottedI) {
      out.push_back('i');
      AppendCodePoint(kCombiningDot, &out);
    } else {
      AppendCodePoint(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))),
                      &out);
    }
  }
  return out;
}

std::string_view StripLeft(std::string_view text) {
  size_t begin = 0;
  while (begin < text.size()) {
    size_t next = begin;
    if (!IsPythonSpace(NextCodePoint(text, &next))) break;
    begin = next;
  }
  return text.substr(begin);
}

std::string_view StripRight(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t previous = end;
    if (!IsPythonSpace(PreviousCodePoint(text, &previous))) break;
    end = previous;
  }
  return text.substr(0, end);
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t end = i;
    const char32_t c = NextCodePoint(text, &i);
    const bool ends = (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                      c == 0x2028 || c == 0x2029;
    if (!ends) continue;
    if (c == '\r' && i < text.size() && text[i] == '\n') ++i;
    lines.push_back(text.substr(begin, (keep_ends ? i : end) - begin));
    begin = i;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

size_t OffsetOf(std::string_view text, int64_t index, bool is_ascii) {
  if (is_ascii) return std::min(static_cast<size_t>(index), text.size());
  size_t offset = 0;
  for (int64_t i = 0; i < index && offset < text.size(); ++i) (void)NextCodePoint(text, &offset);
  return offset;
}

}  // namespace pergola::jinja
