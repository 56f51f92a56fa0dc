// The printable alphabet of byte-level vocabularies (GPT-2): each of the 256 bytes is written as
// one visible character. Only spelling; which bytes a model knows is its own matter.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pergola {

// The bytes that `token` spells, or nothing if it has a character outside the alphabet. `token` is
// valid UTF-8.
std::optional<std::string> BytesOfSpelling(std::string_view token);

// What decoding shows for `token`: the bytes it spells, or itself if it is no spelling.
std::string DecodedToken(std::string_view token);

// The spelling of `bytes`: two bytes of UTF-8 at most for each.
std::string SpellBytes(std::string_view bytes);

}  // namespace pergola
