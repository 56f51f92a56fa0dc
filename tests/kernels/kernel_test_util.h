// What the kernel tests share: targets as parameters, random values and weights, a stream per
// target.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu_stream.h"
#include "kernels/matmul.h"

namespace pergola {

inline constexpr CpuTarget kAllTargets[] = {CpuTarget::kReference, CpuTarget::kPortable,
                                            CpuTarget::kAvx2, CpuTarget::kAvx512};
// Those whose bits must agree with each other; the reference computes in double.
inline constexpr CpuTarget kFastTargets[] = {CpuTarget::kPortable, CpuTarget::kAvx2,
                                             CpuTarget::kAvx512};

inline constexpr DType kWeightTypes[] = {DType::kF32,  DType::kBF16,  DType::kF16,  DType::kQ8_0,
                                         DType::kQ4_0, DType::kQ4_1,  DType::kQ5_0, DType::kQ5_1,
                                         DType::kQ2_K, DType::kQ3_K,  DType::kQ4_K, DType::kQ5_K,
                                         DType::kQ6_K, DType::kIQ4_NL};
// Those of kWeightTypes whose values come in blocks.
inline constexpr DType kBlockTypes[] = {DType::kQ8_0, DType::kQ4_0,   DType::kQ4_1, DType::kQ5_0,
                                        DType::kQ5_1, DType::kIQ4_NL, DType::kQ2_K, DType::kQ3_K,
                                        DType::kQ4_K, DType::kQ5_K,   DType::kQ6_K};

// A visible skip where this machine lacks the target.
#define SKIP_WITHOUT(target)                                        \
  if (!CpuTargetSupported(target)) {                                \
    GTEST_SKIP() << "this machine lacks " << CpuTargetName(target); \
  }

// Unit roundoff of f32.
inline constexpr double kUnit = 0x1.0p-24;

inline std::unique_ptr<CpuStream> MakeStream(CpuTarget target, int threads = 2,
                                             int64_t workspace_bytes = 0) {
  StreamOptions options;
  options.threads = threads;
  options.workspace_bytes = workspace_bytes;
  return CpuStream::Create(options, target);
}

inline std::vector<float> RandomValues(int64_t count, uint32_t seed, float deviation = 1.0F) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0F, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(generator);
  return values;
}

// Rows of a model file: `row_values` (whole blocks) of `dtype` each.
inline std::vector<uint8_t> RandomFileRows(DType dtype, int64_t rows, int64_t row_values,
                                           uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * DTypeBytes(dtype, row_values)));
  const auto put_half = [&](size_t at, uint16_t half) { std::memcpy(&bytes[at], &half, 2); };
  if (BlockValues(dtype) == 1) {
    for (int64_t i = 0; i < rows * row_values; ++i) {
      const float value = normal(generator);
      const auto at = static_cast<size_t>(i * BlockBytes(dtype));
      if (dtype == DType::kF32) {
        std::memcpy(&bytes[at], &value, 4);
      } else {
        put_half(at, dtype == DType::kBF16 ? F32ToBF16(value) : F32ToF16(value));
      }
    }
    return bytes;
  }
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(generator());
  for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(BlockBytes(dtype))) {
    const BlockHalves halves = HalvesOf(dtype);
    const auto first = at + static_cast<size_t>(halves.offset);
    put_half(first, F32ToF16(0.1F * normal(generator)));
    if (halves.count == 2) put_half(first + 2, F32ToF16(normal(generator)));
  }
  return bytes;
}

inline PackedMatrix RandomMatrix(DType dtype, int64_t rows, int64_t columns, uint32_t seed,
                                 int lead = 0) {
  const int64_t block = BlockValues(dtype);
  const int64_t covered = (lead + columns + block - 1) / block * block;
  const std::vector<uint8_t> file = RandomFileRows(dtype, rows, covered, seed);
  PackedMatrix matrix = PackedMatrix::Allocate(dtype, rows, columns, lead);
  matrix.PackRows(0, rows, file.data(), DTypeBytes(dtype, covered));
  return matrix;
}

}  // namespace pergola
