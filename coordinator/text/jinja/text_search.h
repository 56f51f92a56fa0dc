// Searching, replacing and stripping of text, for methods, filters and operators. All take time
// linear in the text, whatever is searched for; std::string's own searches may not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja/heap.h"

namespace pergola::jinja {

// Byte offsets, or npos.
size_t FindText(std::string_view text, std::string_view wanted, size_t from = 0);
absl::StatusOr<size_t> FindLastText(std::string_view text, std::string_view wanted, Heap& heap);
absl::StatusOr<std::string> ReplaceText(const std::string& text, const std::string& old,
                                        const std::string& with, int64_t count, Heap& heap);
std::string StripText(const std::string& text, const std::string* characters, bool left,
                      bool right);
std::string Capitalized(std::string_view text);

}  // namespace pergola::jinja
