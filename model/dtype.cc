#include "model/dtype.h"

#include <cstring>

#include "base/check.h"

namespace pergola {
namespace {

constexpr int64_t kBlock = 32;

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

// The low nibbles of the 16 bytes are values 0 to 15 of the block, the high nibbles are 16 to 31.
void DecodeBlock(DType dtype, const uint8_t* block, float* destination) {
  const float scale = F16ToF32(LoadU16(block));
  if (dtype == DType::kQ8_0) {
    for (int64_t i = 0; i < kBlock; ++i) {
      destination[i] = scale * static_cast<float>(static_cast<int8_t>(block[2 + i]));
    }
    return;
  }
  const bool has_minimum = dtype == DType::kQ4_1;
  const uint8_t* nibbles = block + (has_minimum ? 4 : 2);
  const int bias = has_minimum ? 0 : 8;
  for (int64_t i = 0; i < kBlock / 2; ++i) {
    destination[i] = scale * static_cast<float>((nibbles[i] & 15) - bias);
    destination[i + kBlock / 2] = scale * static_cast<float>((nibbles[i] >> 4) - bias);
  }
  if (!has_minimum) return;
  const float minimum = F16ToF32(LoadU16(block + 2));
  for (int64_t i = 0; i < kBlock; ++i) destination[i] += minimum;
}

}  // namespace

std::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kBF16:
      return "bf16";
    case DType::kF16:
      return "f16";
    case DType::kI32:
      return "i32";
    case DType::kQ8_0:
      return "q8_0";
    case DType::kQ4_0:
      return "q4_0";
    case DType::kQ4_1:
      return "q4_1";
    case DType::kInt8:
      return "int8";
  }
  return "unknown";
}

int64_t BlockValues(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
      return kBlock;
    default:
      return 1;
  }
}

int64_t BlockBytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
      return 2;
    case DType::kQ8_0:
      return 34;
    case DType::kQ4_0:
      return 18;
    case DType::kQ4_1:
      return 20;
    case DType::kInt8:
      return 1;
  }
  return 0;
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

void DecodeToF32(DType dtype, const void* source, int64_t values, float* destination) {
  PERGOLA_CHECK(dtype != DType::kI32 && dtype != DType::kInt8);
  PERGOLA_CHECK(values % BlockValues(dtype) == 0);
  const auto* bytes = static_cast<const uint8_t*>(source);
  if (BlockValues(dtype) == 1) return DecodeDense(dtype, bytes, values, destination);
  for (int64_t i = 0; i < values; i += kBlock) {
    DecodeBlock(dtype, bytes + i / kBlock * BlockBytes(dtype), destination + i);
  }
}

}  // namespace pergola
