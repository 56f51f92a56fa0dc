#include "coordinator/text/utf8.h"

#include <utf8proc.h>

#include <cstring>

#include "coordinator/text/tokenizer.h"

namespace pergola {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";
constexpr uint64_t kHighBits = 0x8080808080808080ULL;

// What must follow the first byte of a character; count -1: no character starts so.
struct LeadByte {
  int count;
  uint8_t low, high;
};

LeadByte ClassifyLeadByte(uint8_t byte) {
  if (byte < 0x80) return {0, 0x80, 0xBF};
  if (byte < 0xC2) return {-1, 0, 0};
  if (byte < 0xE0) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte < 0xF0) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte < 0xF4) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {-1, 0, 0};
}

// The length of the leading run of ASCII from `position`, found eight bytes at a time.
size_t SkipAscii(std::string_view text, size_t position) {
  while (position + 8 <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + position, 8);
    if ((word & kHighBits) != 0) break;
    position += 8;
  }
  while (position < text.size() && static_cast<uint8_t>(text[position]) < 0x80) ++position;
  return position;
}

}  // namespace

int64_t FindInvalidUtf8(std::string_view text) {
  size_t position = 0;
  while ((position = SkipAscii(text, position)) < text.size()) {
    const LeadByte lead = ClassifyLeadByte(static_cast<uint8_t>(text[position]));
    if (lead.count < 0 || text.size() - position <= static_cast<size_t>(lead.count)) {
      return static_cast<int64_t>(position);
    }
    const auto second = static_cast<uint8_t>(text[position + 1]);
    bool valid = second >= lead.low && second <= lead.high;
    for (int i = 2; i <= lead.count; ++i) {
      valid = valid && (static_cast<uint8_t>(text[position + i]) & 0xC0) == 0x80;
    }
    if (!valid) return static_cast<int64_t>(position);
    position += lead.count + 1;
  }
  return -1;
}

char32_t NextCodePoint(std::string_view text, size_t* position) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data()) + *position;
  if (bytes[0] < 0x80) {
    *position += 1;
    return bytes[0];
  }
  if (bytes[0] < 0xE0) {
    *position += 2;
    return (bytes[0] & 0x1FU) << 6 | (bytes[1] & 0x3FU);
  }
  if (bytes[0] < 0xF0) {
    *position += 3;
    return (bytes[0] & 0x0FU) << 12 | (bytes[1] & 0x3FU) << 6 | (bytes[2] & 0x3FU);
  }
  *position += 4;
  return (bytes[0] & 0x07U) << 18 | (bytes[1] & 0x3FU) << 12 | (bytes[2] & 0x3FU) << 6 |
         (bytes[3] & 0x3FU);
}

char32_t PreviousCodePoint(std::string_view text, size_t* position) {
  size_t start = *position - 1;
  while (start > 0 && (static_cast<uint8_t>(text[start]) & 0xC0) == 0x80) --start;
  *position = start;
  size_t end = start;
  return NextCodePoint(text, &end);
}

void AppendCodePoint(char32_t code_point, std::string* out) {
  utf8proc_uint8_t bytes[4];
  const auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), bytes);
  out->append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

bool IsNumeric(char32_t code_point) {
  if (code_point < 0x80) return code_point >= '0' && code_point <= '9';
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code_point));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

bool IsWhitespace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') ||
           (c >= '{' && c <= '~');
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
      return true;
    default:
      return false;
  }
}

bool IsWordCharacter(char32_t code_point) {
  if (code_point == 0x200C || code_point == 0x200D) return true;
  // Other_Alphabetic symbols: circled letters and squared Latin capitals.
  if ((code_point >= 0x24B6 && code_point <= 0x24E9) ||
      (code_point >= 0x1F130 && code_point <= 0x1F149) ||
      (code_point >= 0x1F150 && code_point <= 0x1F169) ||
      (code_point >= 0x1F170 && code_point <= 0x1F189)) {
    return true;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

void LossyUtf8Decoder::PushByte(uint8_t byte, std::string* out) {
  if (needed_ > 0) {
    if (byte >= low_ && byte <= high_) {
      pending_[pending_count_++] = static_cast<char>(byte);
      low_ = 0x80;
      high_ = 0xBF;
      if (--needed_ > 0) return;
      out->append(pending_, static_cast<size_t>(pending_count_));
      pending_count_ = 0;
      return;
    }
    Finish(out);
  }
  const LeadByte lead = ClassifyLeadByte(byte);
  if (lead.count < 0) {
    out->append(kReplacement);
  } else if (lead.count == 0) {
    out->push_back(static_cast<char>(byte));
  } else {
    pending_[0] = static_cast<char>(byte);
    pending_count_ = 1;
    needed_ = lead.count;
    low_ = lead.low;
    high_ = lead.high;
  }
}

void LossyUtf8Decoder::Push(std::string_view bytes, std::string* out) {
  size_t position = 0;
  while (position < bytes.size()) {
    if (needed_ == 0) {
      const size_t end = SkipAscii(bytes, position);
      out->append(bytes.data() + position, end - position);
      position = end;
      if (position == bytes.size()) return;
    }
    PushByte(static_cast<uint8_t>(bytes[position++]), out);
  }
}

void LossyUtf8Decoder::Finish(std::string* out) {
  if (needed_ > 0) out->append(kReplacement);
  needed_ = 0;
  pending_count_ = 0;
}

}  // namespace pergola
