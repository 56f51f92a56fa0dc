#include "model/quant_blocks.h"

#include <cstring>

#include "base/check.h"

namespace pergola {
namespace {

float Half(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return F16ToF32(bits);
}

// Bits shift.. of a byte, `mask` of them.
int Bits(uint8_t byte, int64_t shift, int mask) {
  return byte >> shift & mask;
}

// Blocks of 32 whose low four bits are nibbles: value i of the block.
int Nibble(const uint8_t* nibbles, int64_t i) {
  return Bits(nibbles[i % 16], i / 16 * 4, 15);
}

void DecodeSmallBlock(DType dtype, const uint8_t* block, float* out) {
  const float scale = Half(block);
  const bool minimum = HalvesOf(dtype).count == 2;
  const bool fifth = dtype == DType::kQ5_0 || dtype == DType::kQ5_1;
  const uint8_t* high = block + (minimum ? 4 : 2);  // of q5, bit i % 8 of byte i / 8
  const uint8_t* quants = high + (fifth ? 4 : 0);
  for (int64_t i = 0; i < 32; ++i) {
    int q = dtype == DType::kQ8_0 ? static_cast<int8_t>(quants[i]) : Nibble(quants, i);
    if (fifth) q |= Bits(high[i / 8], i % 8, 1) << 4;
    if (dtype == DType::kQ4_0) q -= 8;
    if (dtype == DType::kQ5_0) q -= 16;
    const bool table = dtype == DType::kIQ4_NL;
    out[i] = scale * static_cast<float>(table ? kIq4Values[q] : q);
    if (minimum) out[i] += Half(block + 2);
  }
}

// q4_k and q5_k: eight scales and eight minima of six bits each in 12 bytes.
struct ScaleAndMinimum {
  int scale, minimum;
};
ScaleAndMinimum SixBits(const uint8_t* packed, int64_t j) {
  if (j < 4) return {packed[j] & 63, packed[4 + j] & 63};
  const int64_t i = j - 4;
  return {Bits(packed[8 + i], 0, 15) | Bits(packed[i], 6, 3) << 4,
          Bits(packed[8 + i], 4, 15) | Bits(packed[4 + i], 6, 3) << 4};
}

void DecodeQ2K(const uint8_t* block, float* out) {
  const uint8_t* quants = block + 16;
  const float d = Half(block + 80);
  const float m = Half(block + 82);
  for (int64_t i = 0; i < 256; ++i) {
    const uint8_t scales = block[i / 16];
    const int q = Bits(quants[i / 128 * 32 + i % 32], i % 128 / 32 * 2, 3);
    const float scale = d * static_cast<float>(scales & 15);
    out[i] = scale * static_cast<float>(q) - m * static_cast<float>(scales >> 4);
  }
}

void DecodeQ3K(const uint8_t* block, float* out) {
  const uint8_t* quants = block + 32;
  const uint8_t* scales = block + 96;
  const float d = Half(block + 108);
  for (int64_t i = 0; i < 256; ++i) {
    const int64_t j = i / 16;
    const int low = Bits(scales[j % 8], j / 8 * 4, 15);
    const int scale = (low | Bits(scales[8 + j % 4], j / 4 * 2, 3) << 4) - 32;
    const int q = Bits(quants[i / 128 * 32 + i % 32], i % 128 / 32 * 2, 3) |
                  Bits(block[i % 32], i / 32, 1) << 2;
    out[i] = d * static_cast<float>(scale) * static_cast<float>(q - 4);
  }
}

void DecodeQ45K(bool fifth, const uint8_t* block, float* out) {
  const float d = Half(block);
  const float m = Half(block + 2);
  const uint8_t* high = block + 16;
  const uint8_t* quants = high + (fifth ? 32 : 0);
  for (int64_t i = 0; i < 256; ++i) {
    const int64_t j = i / 32;
    const ScaleAndMinimum small = SixBits(block + 4, j);
    int q = Bits(quants[i / 64 * 32 + i % 32], j % 2 * 4, 15);
    if (fifth) q |= Bits(high[i % 32], j, 1) << 4;
    const float scale = d * static_cast<float>(small.scale);
    out[i] = scale * static_cast<float>(q) - m * static_cast<float>(small.minimum);
  }
}

void DecodeQ6K(const uint8_t* block, float* out) {
  const uint8_t* high = block + 128;
  const uint8_t* scales = block + 192;
  const float d = Half(block + 208);
  for (int64_t i = 0; i < 256; ++i) {
    const int64_t half = i / 128;
    const int q = Bits(block[half * 64 + i % 64], i % 128 / 64 * 4, 15) |
                  Bits(high[half * 32 + i % 32], i % 128 / 32 * 2, 3) << 4;
    out[i] =
        d * static_cast<float>(static_cast<int8_t>(scales[i / 16])) * static_cast<float>(q - 32);
  }
}

}  // namespace

void DecodeQuantBlock(DType dtype, const uint8_t* block, float* out) {
  switch (dtype) {
    case DType::kQ2_K:
      return DecodeQ2K(block, out);
    case DType::kQ3_K:
      return DecodeQ3K(block, out);
    case DType::kQ4_K:
      return DecodeQ45K(false, block, out);
    case DType::kQ5_K:
      return DecodeQ45K(true, block, out);
    case DType::kQ6_K:
      return DecodeQ6K(block, out);
    default:
      PERGOLA_CHECK(BlockValues(dtype) == 32);
      return DecodeSmallBlock(dtype, block, out);
  }
}

}  // namespace pergola
