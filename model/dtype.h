// Element types of tensors in files and in memory, and how many bytes they take.
#pragma once

#include <cstdint>
#include <string_view>

namespace pergola {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF16,
  kI32,
  kQ8_0,  // GGUF: blocks of 32 = one f16 scale, 32 int8; value = scale * q
  kQ4_0,  // GGUF: blocks of 32 = one f16 scale, 16 bytes of nibbles; value = scale * (q - 8)
  kQ4_1,  // GGUF: blocks of 32 = f16 scale, f16 minimum, 16 bytes of nibbles; value = scale * q +
          // minimum
  kInt8,  // rows made at load, in no file: one f32 scale per row, int8; value = scale * q
};

// "f32", "bf16", ..., as printed and as taken by flags.
std::string_view DTypeName(DType dtype);
// Values per block along the innermost dimension: 1, or 32 for the quantised types.
int64_t BlockValues(DType dtype);
// Bytes per block: 4, 2, 2, 4, 34, 18, 20; 1 of kInt8, whose rows have a scale beside.
int64_t BlockBytes(DType dtype);
// Bytes of `values` consecutive values; `values` must be a multiple of BlockValues.
int64_t DTypeBytes(DType dtype, int64_t values);

// Exact conversions (bf16 and f16 to f32), and round to nearest even back.
float BF16ToF32(uint16_t bits);
float F16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);
uint16_t F32ToF16(float value);

// Decodes `values` (a multiple of BlockValues) consecutive values of `dtype` at `source` to f32:
// the one scalar decoder that tests and references use. Not for kI32 and kInt8.
void DecodeToF32(DType dtype, const void* source, int64_t values, float* destination);

}  // namespace pergola
