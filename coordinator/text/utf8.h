// UTF-8 and the few Unicode questions a tokenizer asks. Not for normalisation (normalizer.h) or
// patterns (regex.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pergola {

// The code point that starts at `*position`, which moves behind it. `text` is valid UTF-8,
// *position a boundary before its end.
char32_t NextCodePoint(std::string_view text, size_t* position);
// The code point that ends at `*position` > 0, which moves to its first byte.
char32_t PreviousCodePoint(std::string_view text, size_t* position);
void AppendCodePoint(char32_t code_point, std::string* out);

bool IsNumeric(char32_t code_point);     // general categories Nd, Nl, No
bool IsWhitespace(char32_t code_point);  // White_Space
// ASCII punctuation and symbols, and general categories P*.
bool IsPunctuation(char32_t code_point);
// \w of Unicode TR 18: alphabetic, marks, decimal digits, connector punctuation and joiners.
bool IsWordCharacter(char32_t code_point);

// Bytes to valid UTF-8, incrementally: each maximal invalid subsequence becomes one U+FFFD (Unicode
// 15, section 3.9, "substitution of maximal subparts"). At most three bytes are held back.
class LossyUtf8Decoder {
 public:
  void Push(std::string_view bytes, std::string* out);
  // The end: an incomplete character becomes U+FFFD.
  void Finish(std::string* out);

 private:
  void PushByte(uint8_t byte, std::string* out);

  char pending_[4] = {};
  int pending_count_ = 0;
  int needed_ = 0;  // continuation bytes still to come
  // What the next continuation byte may be: the second byte of E0, ED, F0 and F4 has a narrower
  // range.
  uint8_t low_ = 0x80;
  uint8_t high_ = 0xBF;
};

}  // namespace pergola
