// Unicode normal forms, as a tokenizer's normalizer applies them before anything else. Nothing else
// is supported.
#pragma once

#include <string>
#include <string_view>

namespace pergola {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// `text` (valid UTF-8) in `form` (Unicode Annex 15). O(n log n), whatever the text.
std::string Normalize(std::string_view text, NormalForm form);

}  // namespace pergola
