#include "coordinator/text/charsmap.h"

#include <utf8proc.h>

#include <cstring>

#include "base/status.h"
#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

// Rules are looked up for graphemes below this.
constexpr size_t kGraphemeLimitBytes = 6;

// The fields of one unit, as the Darts-clone library packs them.
bool HasLeaf(uint32_t unit) {
  return (unit >> 8 & 1) != 0;
}
uint32_t Value(uint32_t unit) {
  return unit & 0x7FFFFFFFU;
}
uint32_t Label(uint32_t unit) {
  return unit & 0x800000FFU;
}
uint32_t Offset(uint32_t unit) {
  return unit >> 10 << ((unit & 0x200U) >> 6);
}

}  // namespace

absl::StatusOr<Charsmap> Charsmap::Create(std::string_view blob) {
  uint32_t trie_bytes = 0;
  if (blob.size() >= sizeof(trie_bytes)) std::memcpy(&trie_bytes, blob.data(), sizeof(trie_bytes));
  const size_t rest = blob.size() < sizeof(trie_bytes) ? 0 : blob.size() - sizeof(trie_bytes);
  if (trie_bytes == 0 || trie_bytes % sizeof(uint32_t) != 0 || trie_bytes > rest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the charsmap of ", blob.size(), " bytes states a trie of ", trie_bytes, " bytes"));
  }
  Charsmap map;
  map.units_.resize(trie_bytes / sizeof(uint32_t));
  std::memcpy(map.units_.data(), blob.data() + sizeof(trie_bytes), trie_bytes);
  map.replacements_ = std::string(blob.substr(sizeof(trie_bytes) + trie_bytes));
  const int64_t invalid = FindInvalidUtf8(map.replacements_);
  if (invalid >= 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the charsmap's replacements are not valid UTF-8 at byte ", invalid));
  }
  return map;
}

std::optional<std::string_view> Charsmap::Find(std::string_view text) const {
  size_t node = Offset(units_[0]);
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte == 0) break;
    node ^= byte;
    if (node >= units_.size()) break;
    const uint32_t unit = units_[node];
    if (Label(unit) != byte) break;
    node ^= Offset(unit);  // where its children begin, before their labels are put in
    if (!HasLeaf(unit)) continue;
    if (node >= units_.size()) break;
    const uint32_t begin = Value(units_[node]);
    // A broken file may point behind the replacements or into a character.
    if (begin >= replacements_.size() ||
        (static_cast<uint8_t>(replacements_[begin]) & 0xC0) == 0x80) {
      return std::nullopt;
    }
    return std::string_view(replacements_.c_str() + begin);
  }
  return std::nullopt;
}

void Charsmap::ApplyToGrapheme(std::string_view grapheme, std::string* out) const {
  if (grapheme.size() < kGraphemeLimitBytes) {
    if (const auto replacement = Find(grapheme); replacement.has_value()) {
      out->append(*replacement);
      return;
    }
  }
  for (size_t position = 0; position < grapheme.size();) {
    const size_t begin = position;
    NextCodePoint(grapheme, &position);
    const std::string_view character = grapheme.substr(begin, position - begin);
    out->append(Find(character).value_or(character));
  }
}

std::string Charsmap::Apply(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  utf8proc_int32_t state = 0;
  size_t begin = 0;
  for (size_t position = 0; position < text.size();) {
    size_t next = position;
    const auto current = static_cast<utf8proc_int32_t>(NextCodePoint(text, &next));
    bool breaks = next == text.size();
    if (!breaks) {
      size_t unused = next;
      const auto behind = static_cast<utf8proc_int32_t>(NextCodePoint(text, &unused));
      breaks = utf8proc_grapheme_break_stateful(current, behind, &state) != 0;
    }
    position = next;
    if (!breaks) continue;
    ApplyToGrapheme(text.substr(begin, position - begin), &out);
    begin = position;
    state = 0;
  }
  return out;
}

}  // namespace pergola
