#include "coordinator/text/normal_form.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

using CodePoints = std::vector<utf8proc_int32_t>;

// True if no form can change the text: ASCII; for NFC anything below U+0300, the first combining
// mark.
bool IsInert(std::string_view text, NormalForm form) {
  const uint8_t first_risky_byte = form == NormalForm::kNfc ? 0xCC : 0x80;
  return std::all_of(text.begin(), text.end(), [&](char byte) {
    const auto value = static_cast<uint8_t>(byte);
    return value < first_risky_byte;
  });
}

void Decompose(std::string_view text, utf8proc_option_t options, CodePoints* out) {
  // The longest decomposition of one character has 18 code points (U+FDFA, compatibility).
  constexpr int kMaxDecomposition = 32;
  utf8proc_int32_t buffer[kMaxDecomposition];
  int boundary = 0;
  for (size_t position = 0; position < text.size();) {
    const auto code_point = static_cast<utf8proc_int32_t>(NextCodePoint(text, &position));
    const auto count =
        utf8proc_decompose_char(code_point, buffer, kMaxDecomposition, options, &boundary);
    PERGOLA_CHECK(count >= 0 && count <= kMaxDecomposition);
    out->insert(out->end(), buffer, buffer + count);
  }
}

int CombiningClass(utf8proc_int32_t code_point) {
  return utf8proc_get_property(code_point)->combining_class;
}

// Canonical ordering. Not utf8proc's own, which takes quadratic time on a long run of marks.
void OrderMarks(CodePoints* text) {
  const auto by_class = [](utf8proc_int32_t a, utf8proc_int32_t b) {
    return CombiningClass(a) < CombiningClass(b);
  };
  for (auto run = text->begin(); run != text->end();) {
    if (CombiningClass(*run) == 0) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, text->end(), [](auto c) { return CombiningClass(c) == 0; });
    std::stable_sort(run, end, by_class);
    run = end;
  }
}

}  // namespace

std::string Normalize(std::string_view text, NormalForm form) {
  if (IsInert(text, form)) return std::string(text);
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
  if (compatible) options |= UTF8PROC_COMPAT;
  CodePoints code_points;
  code_points.reserve(text.size());
  Decompose(text, static_cast<utf8proc_option_t>(options), &code_points);
  OrderMarks(&code_points);
  if (compose) {
    const auto length = utf8proc_normalize_utf32(
        code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    PERGOLA_CHECK(length >= 0);
    code_points.resize(static_cast<size_t>(length));
  }
  std::string out;
  out.reserve(text.size());
  for (const auto code_point : code_points) AppendCodePoint(code_point, &out);
  return out;
}

}  // namespace pergola
