// Activations in device memory for tests: f32 values rounded to a dtype, and back.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/tensor.h"
#include "model/dtype.h"
#include "tests/kernels/cuda/device_array.h"

namespace pergola {

inline std::vector<uint8_t> ToBytes(DType dtype, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(static_cast<size_t>(DTypeBytes(dtype, values.size())));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = dtype == DType::kBF16 ? F32ToBF16(values[i]) : F32ToF16(values[i]);
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      std::memcpy(&bytes[2 * i], &half, 2);
    }
  }
  return bytes;
}

inline std::vector<float> ToFloats(DType dtype, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(BlockBytes(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t half = 0;
    if (dtype == DType::kF32) {
      std::memcpy(&values[i], &bytes[4 * i], 4);
    } else {
      std::memcpy(&half, &bytes[2 * i], 2);
      values[i] = dtype == DType::kBF16 ? BF16ToF32(half) : F16ToF32(half);
    }
  }
  return values;
}

// What the dtype holds of the values.
inline std::vector<float> Rounded(DType dtype, const std::vector<float>& values) {
  return ToFloats(dtype, ToBytes(dtype, values));
}

// Half a unit in the last place of `value` in the dtype, and half of the smallest subnormal.
inline double RoundingError(DType dtype, double value) {
  const double size = value < 0 ? -value : value;
  if (dtype == DType::kF16) return size * 0x1.0p-11 + 0x1.0p-25;
  return size * (dtype == DType::kBF16 ? 0x1.0p-8 : 0x1.0p-24);
}

class DeviceActivations {
 public:
  DeviceActivations(DType dtype, int64_t rows, int64_t columns, const std::vector<float>& values)
      : dtype_(dtype), rows_(rows), columns_(columns), bytes_(ToBytes(dtype, values)) {}
  Tensor tensor() const { return Tensor(bytes_.data(), dtype_, {rows_, columns_}); }
  std::vector<float> Read() const { return ToFloats(dtype_, bytes_.Read()); }

 private:
  DType dtype_;
  int64_t rows_, columns_;
  DeviceArray<uint8_t> bytes_;
};

}  // namespace pergola
