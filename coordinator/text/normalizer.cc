#include "coordinator/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "base/status.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

bool IsMark(char32_t character) {
  if (character < 0x300) return false;
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(character));
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC ||
         category == UTF8PROC_CATEGORY_ME;
}

// Calls `map(character, out)` for each character: it appends what takes its place.
template <typename Map>
std::string MapCharacters(std::string_view text, bool* front_lost, const Map& map) {
  std::string out;
  out.reserve(text.size());
  for (size_t position = 0; position < text.size();) {
    const bool first = position == 0;
    map(NextCodePoint(text, &position), &out);
    if (first && out.empty()) *front_lost = true;
  }
  return out;
}

void AppendLowercase(char32_t character, std::string* out) {
  if (character < 0x80) {
    const bool capital = character >= 'A' && character <= 'Z';
    out->push_back(static_cast<char>(capital ? character + ('a' - 'A') : character));
    return;
  }
  constexpr char32_t kCapitalIWithDot = 0x130;
  if (character == kCapitalIWithDot) {  // the only one that becomes two characters
    out->append("i\xCC\x87");
    return;
  }
  const auto lower = utf8proc_tolower(static_cast<utf8proc_int32_t>(character));
  AppendCodePoint(static_cast<char32_t>(lower), out);
}

// The first table of SentencePiece's nmt_nfkc rules: controls vanish, odd spaces become spaces.
void AppendNmt(char32_t c, std::string* out) {
  const bool vanishes = (c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) ||
                        c == 0x7F || c == 0x8F || c == 0x9F;
  if (vanishes) return;
  const bool space = c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
                     (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 ||
                     c == 0xFEFF || c == 0xFFFD;
  AppendCodePoint(space ? U' ' : c, out);
}

std::string Strip(const NormalizerStep& step, std::string_view text, bool* front_lost) {
  size_t begin = 0;
  size_t end = text.size();
  while (step.left && begin < end) {
    size_t next = begin;
    if (!IsWhitespace(NextCodePoint(text, &next))) break;
    begin = next;
  }
  while (step.right && end > begin) {
    size_t before = end;
    if (!IsWhitespace(PreviousCodePoint(text, &before))) break;
    end = before;
  }
  if (begin > 0) *front_lost = true;
  return std::string(text.substr(begin, end - begin));
}

absl::StatusOr<std::string> Replace(const NormalizerStep& step, std::string_view text,
                                    size_t max_bytes, Regex::Workspace* workspace,
                                    bool* front_lost) {
  Ranges ranges;
  RETURN_IF_ERROR(step.pattern.FindAll(text, workspace, &ranges));
  std::string out;
  out.reserve(text.size());
  for (const auto& [range, is_match] : ranges) {
    out.append(is_match ? std::string_view(step.content)
                        : text.substr(range.begin, range.end - range.begin));
    if (out.size() > max_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat("the normalizer makes more than ", max_bytes,
                                                       " bytes of a text of ", text.size()));
    }
    if (!is_match || range.begin > 0 || range.end == 0) continue;
    // What replaces a text counts as coming from its last character.
    size_t first_end = 0;
    NextCodePoint(text, &first_end);
    if (step.content.empty() || range.end > first_end) *front_lost = true;
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> Normalizer::Apply(std::string_view text, Regex::Workspace* workspace,
                                              bool* front_lost) const {
  const size_t max_bytes = kMaxGrowth * (text.size() + kGrowthBase);
  std::string current(text);
  for (const NormalizerStep& step : steps_) {
    using Kind = NormalizerStep::Kind;
    switch (step.kind) {
      case Kind::kForm:
        current = Normalize(current, step.form);
        break;
      case Kind::kLowercase:
        current = MapCharacters(current, front_lost, AppendLowercase);
        break;
      case Kind::kStripAccents:
        current = MapCharacters(current, front_lost, [](char32_t c, std::string* out) {
          if (!IsMark(c)) AppendCodePoint(c, out);
        });
        break;
      case Kind::kStrip:
        current = Strip(step, current, front_lost);
        break;
      case Kind::kPrepend:
        if (!current.empty()) current.insert(0, step.content);
        break;
      case Kind::kReplace: {
        ASSIGN_OR_RETURN(current, Replace(step, current, max_bytes, workspace, front_lost));
        break;
      }
      case Kind::kCharsmap:
        current = step.charsmap->Apply(current);
        break;
      case Kind::kNmt:
        current = MapCharacters(current, front_lost, AppendNmt);
        break;
    }
    if (current.size() > max_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat("the normalizer makes more than ", max_bytes,
                                                       " bytes of a text of ", text.size()));
    }
  }
  return current;
}

}  // namespace pergola
