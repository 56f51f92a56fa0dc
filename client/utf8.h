// UTF-8 as RFC 3629 defines it: what a prompt must be.
#pragma once

#include <cstddef>
#include <string_view>

namespace pergola {

// The offset of the first byte that is not part of a valid character (over-long forms, surrogates
// and values beyond U+10FFFF are not), or the size of `text` if there is none.
size_t FirstInvalidUtf8(std::string_view text);

}  // namespace pergola
