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
  // GGUF's block formats, value by value in model/quant_blocks.h.
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kIQ4_NL,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kInt8,  // rows made at load, in no file: one f32 scale per row, int8; value = scale * q
};

// "f32", "bf16", ..., as printed and as taken by flags.
std::string_view DTypeName(DType dtype);
// Values per block along the innermost dimension: 1, 32, or 256 for the K-quants.
int64_t BlockValues(DType dtype);
// Bytes per block: 4, 2, 2, 4, 34, 18, ...; 1 of kInt8, whose rows have a scale beside.
int64_t BlockBytes(DType dtype);
// Bytes of `values` consecutive values; `values` must be a multiple of BlockValues.
int64_t DTypeBytes(DType dtype, int64_t values);

// The f16 numbers of a block, which scale all of it: at its beginning or at its end. The rest of a
// block is quants and small scales, whole 32-bit words.
struct BlockHalves {
  int64_t count = 0;
  int64_t offset = 0;  // of the first, in bytes
};
BlockHalves HalvesOf(DType dtype);

// Exact conversions (bf16 and f16 to f32), and round to nearest even back.
float BF16ToF32(uint16_t bits);
float F16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);
uint16_t F32ToF16(float value);

// Decodes `values` (a multiple of BlockValues) consecutive values of `dtype` at `source` to f32:
// the one scalar decoder that tests and references use. Not for kI32 and kInt8.
void DecodeToF32(DType dtype, const void* source, int64_t values, float* destination);

}  // namespace pergola
