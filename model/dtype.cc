#include "model/dtype.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/check.h"
#include "model/quant_blocks.h"

namespace pergola {
namespace {

uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float BitsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint16_t LoadU16(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}

void DecodeDense(DType dtype, const uint8_t* source, int64_t values, float* destination) {
  if (dtype == DType::kF32) {
    if (values > 0) std::memcpy(destination, source, static_cast<size_t>(values) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < values; ++i) {
    const uint16_t bits = LoadU16(source + 2 * i);
    destination[i] = dtype == DType::kBF16 ? BF16ToF32(bits) : F16ToF32(bits);
  }
}

struct Traits {
  DType dtype;
  const char* name;
  int64_t block_values, block_bytes;
  BlockHalves halves;
};

constexpr Traits kTraits[] = {
    {DType::kF32, "f32", 1, 4, {}},
    {DType::kBF16, "bf16", 1, 2, {}},
    {DType::kF16, "f16", 1, 2, {}},
    {DType::kI32, "i32", 1, 4, {}},
    {DType::kQ8_0, "q8_0", 32, 34, {1, 0}},
    {DType::kQ4_0, "q4_0", 32, 18, {1, 0}},
    {DType::kQ4_1, "q4_1", 32, 20, {2, 0}},
    {DType::kQ5_0, "q5_0", 32, 22, {1, 0}},
    {DType::kQ5_1, "q5_1", 32, 24, {2, 0}},
    {DType::kIQ4_NL, "iq4_nl", 32, 18, {1, 0}},
    {DType::kQ2_K, "q2_k", 256, 84, {2, 80}},
    {DType::kQ3_K, "q3_k", 256, 110, {1, 108}},
    {DType::kQ4_K, "q4_k", 256, 144, {2, 0}},
    {DType::kQ5_K, "q5_k", 256, 176, {2, 0}},
    {DType::kQ6_K, "q6_k", 256, 210, {1, 208}},
    {DType::kInt8, "int8", 1, 1, {}},
    {DType::kFp8, "fp8", 1, 1, {}},
};

const Traits& TraitsOf(DType dtype) {
  const auto index = static_cast<size_t>(dtype);
  PERGOLA_CHECK(index < std::size(kTraits) && kTraits[index].dtype == dtype);
  return kTraits[index];
}

}  // namespace

std::string_view DTypeName(DType dtype) {
  return TraitsOf(dtype).name;
}

int64_t BlockValues(DType dtype) {
  return TraitsOf(dtype).block_values;
}

int64_t BlockBytes(DType dtype) {
  return TraitsOf(dtype).block_bytes;
}

BlockHalves HalvesOf(DType dtype) {
  return TraitsOf(dtype).halves;
}

int64_t DTypeBytes(DType dtype, int64_t values) {
  PERGOLA_CHECK(values % BlockValues(dtype) == 0);
  return values / BlockValues(dtype) * BlockBytes(dtype);
}

float BF16ToF32(uint16_t bits) {
  return BitsFloat(static_cast<uint32_t>(bits) << 16);
}

float F16ToF32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31;
  const uint32_t mantissa = bits & 0x3ff;
  if (exponent == 31) return BitsFloat(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return BitsFloat(sign | (exponent + 112) << 23 | mantissa << 13);
  // Subnormal or zero: mantissa * 2^-24, exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24F;
  return sign != 0 ? -magnitude : magnitude;
}

uint16_t F32ToBF16(float value) {
  const uint32_t bits = FloatBits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) {
    return static_cast<uint16_t>(bits >> 16 | 0x40);  // a NaN stays one: set the quiet bit
  }
  // Adding half of the last place, less one if the kept part is even, rounds to nearest even.
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t F32ToF16(float value) {
  const uint32_t bits = FloatBits(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  }
  // 65520 is halfway between the largest f16 (65504) and the next power of two: from there on
  // infinity.
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {
    // Below 2^-14: adding 0.5 leaves the value as a multiple of 2^-24 in the last bits, rounded to
    // nearest even by the f32 addition itself.
    const uint32_t sum = FloatBits(BitsFloat(magnitude) + 0.5F);
    return static_cast<uint16_t>(sign | (sum - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112 << 10)));
}

float E4M3ToF32(uint8_t bits) {
  const uint32_t exponent = bits >> 3 & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return BitsFloat(0x7fc00000);
  // Subnormal or zero: mantissa * 2^-9.
  const float size = exponent == 0 ? static_cast<float>(mantissa) * 0x1.0p-9F
                                   : BitsFloat((exponent + 120) << 23 | mantissa << 20);
  return (bits & 0x80) != 0 ? -size : size;
}

uint8_t F32ToE4M3(float value) {
  const uint32_t bits = FloatBits(value);
  const uint32_t sign = bits >> 24 & 0x80;
  uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return 0x7f;
  size = std::min(size, FloatBits(kMostE4M3));
  if (size < FloatBits(0x1.0p-6F)) {
    // Adding 2^14 leaves the value as a multiple of 2^-9 in the last bits, rounded to nearest even
    // by the f32 addition itself.
    const uint32_t sum = FloatBits(BitsFloat(size) + 0x1.0p14F);
    return static_cast<uint8_t>(sign | (sum - FloatBits(0x1.0p14F)));
  }
  const uint32_t rounded = size + 0x7ffff + (size >> 20 & 1);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120 << 3)));
}

void DecodeToF32(DType dtype, const void* source, int64_t values, float* destination) {
  PERGOLA_CHECK(dtype != DType::kI32 && !HasRowScale(dtype));
  PERGOLA_CHECK(values % BlockValues(dtype) == 0);
  const auto* bytes = static_cast<const uint8_t*>(source);
  if (BlockValues(dtype) == 1) return DecodeDense(dtype, bytes, values, destination);
  const int64_t block = BlockValues(dtype);
  for (int64_t i = 0; i < values; i += block) {
    DecodeQuantBlock(dtype, bytes + i / block * BlockBytes(dtype), destination + i);
  }
}

}  // namespace pergola
