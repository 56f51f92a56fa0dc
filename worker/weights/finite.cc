#include "worker/weights/finite.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace pergola {
namespace {

// A value is NaN or Inf exactly if all bits of its exponent are set. The inner loop has no exit so
// that it vectorises.
template <typename T>
int64_t FirstWithExponent(const uint8_t* source, int64_t values, T exponent) {
  constexpr int64_t kStretch = 1024;
  for (int64_t begin = 0; begin < values; begin += kStretch) {
    const int64_t end = std::min(values, begin + kStretch);
    int bad = 0;
    for (int64_t i = begin; i < end; ++i) {
      T bits;
      std::memcpy(&bits, source + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
      bad |= static_cast<int>((bits & exponent) == exponent);
    }
    if (bad == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      T bits;
      std::memcpy(&bits, source + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
      if ((bits & exponent) == exponent) return i;
    }
  }
  return -1;
}

constexpr uint16_t kF16Exponent = 0x7C00;

// The f16 numbers of every block scale all of it.
int64_t FirstBadBlock(DType dtype, const uint8_t* source, int64_t values) {
  const BlockHalves halves = HalvesOf(dtype);
  const int64_t bytes = BlockBytes(dtype);
  const int64_t blocks = values / BlockValues(dtype);
  for (int64_t b = 0; b < blocks; ++b) {
    const uint8_t* first = source + b * bytes + halves.offset;
    if (FirstWithExponent<uint16_t>(first, halves.count, kF16Exponent) >= 0) {
      return b * BlockValues(dtype);
    }
  }
  return -1;
}

}  // namespace

int64_t FirstNonFinite(DType dtype, const uint8_t* source, int64_t values) {
  switch (dtype) {
    case DType::kF32:
      return FirstWithExponent<uint32_t>(source, values, 0x7F800000U);
    case DType::kBF16:
      return FirstWithExponent<uint16_t>(source, values, 0x7F80);
    case DType::kF16:
      return FirstWithExponent<uint16_t>(source, values, kF16Exponent);
    case DType::kI32:
    case DType::kInt8:
    case DType::kFp8:
      return -1;
    default:
      return FirstBadBlock(dtype, source, values);
  }
}

}  // namespace pergola
