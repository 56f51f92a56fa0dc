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
  // Rows made at load, in no file: one f32 scale per row; value = scale * q.
  kInt8,
  kFp8,  // q is e4m3: a sign, 4 bits of exponent, 3 of mantissa; on GPUs only
};

// "f32", "bf16", ..., as printed and as taken by flags.
std::string_view DTypeName(DType dtype);
// Values per block along the innermost dimension: 1, 32, or 256 for the K-quants.
int64_t BlockValues(DType dtype);
// Bytes per block: 4, 2, 2, 4, 34, 18, ...; 1 of kInt8 and kFp8, whose rows have a scale beside.
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

// Whether a row has an f32 scale beside its values.
constexpr bool HasRowScale(DType dtype) {
  return dtype == DType::kInt8 || dtype == DType::kFp8;
}

// Exact conversions (bf16 and f16 to f32), and round to nearest even back.
float BF16ToF32(uint16_t bits);
float F16ToF32(uint16_t bits);
uint16_t F32ToBF16(float value);
uint16_t F32ToF16(float value);

// e4m3 (Micikevicius et al., FP8 formats for deep learning, arXiv:2209.05433): no infinity, NaN is
// 0x7f, the largest number 448, the smallest 2^-9; what is beyond 448 becomes 448.
inline constexpr float kMostE4M3 = 448.0F;
float E4M3ToF32(uint8_t bits);
uint8_t F32ToE4M3(float value);

// Decodes `values` (a multiple of BlockValues) consecutive values of `dtype` at `source` to f32:
// the one scalar decoder that tests and references use. Not for kI32, kInt8 and kFp8.
void DecodeToF32(DType dtype, const void* source, int64_t values, float* destination);

}  // namespace pergola
