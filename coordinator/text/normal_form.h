// Unicode normal forms. Not for the other steps of a normalizer (normalizer.h).
#pragma once

#include <string>
#include <string_view>

namespace pergola {

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// `text` (valid UTF-8) in `form` (Unicode Annex 15). O(n log n), whatever the text.
std::string Normalize(std::string_view text, NormalForm form);

}  // namespace pergola
