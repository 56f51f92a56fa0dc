#include "coordinator/text/byte_level.h"

#include <array>
#include <cstdint>

#include "coordinator/text/utf8.h"

namespace pergola {
namespace {

// Visible bytes of Latin-1 spell themselves; the 68 others follow one another from U+0100.
constexpr bool SpellsItself(uint32_t byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}
constexpr uint32_t kFirstStandIn = 0x100;
constexpr uint32_t kAlphabetEnd = kFirstStandIn + 68;

struct Alphabet {
  std::array<uint16_t, 256> character{};
  std::array<int16_t, kAlphabetEnd> byte{};  // by character; -1: not in the alphabet
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (auto& byte : alphabet.byte) byte = -1;
  uint32_t stand_in = kFirstStandIn;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const uint32_t character = SpellsItself(byte) ? byte : stand_in++;
    alphabet.character[byte] = static_cast<uint16_t>(character);
    alphabet.byte[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::optional<std::string> BytesOfSpelling(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t position = 0; position < token.size();) {
    const char32_t character = NextCodePoint(token, &position);
    if (character >= kAlphabetEnd || kAlphabet.byte[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte[character]));
  }
  return bytes;
}

std::string DecodedToken(std::string_view token) {
  std::optional<std::string> bytes = BytesOfSpelling(token);
  return bytes.has_value() ? *std::move(bytes) : std::string(token);
}

std::string SpellBytes(std::string_view bytes) {
  std::string spelling;
  for (const char byte : bytes) {
    AppendCodePoint(kAlphabet.character[static_cast<uint8_t>(byte)], &spelling);
  }
  return spelling;
}

}  // namespace pergola
