// In what format weight matrices are held: `--dtype` of `pergola up`, `pergola plan` and the
// worker. Vectors (norms, biases) are f32 whatever it says.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "model/dtype.h"

namespace pergola {

enum class WeightFormat : uint8_t {
  kAuto,  // each matrix as the checkpoint has it
  kF32,
  kBF16,
  kF16,
  // Projections of attention and MLP in eight bits per weight, a scale per output; they multiply
  // tokens in eight bits. Embedding, positions and LM head stay as the checkpoint has them: the
  // head decides between near ties, and both are a small part of a large model (Dettmers et al.,
  // arXiv:2208.07339, keep them too).
  kInt8,
  // The same projections in e4m3, a scale per output: GPUs only, where few tokens are multiplied as
  // they are, and many in e4m3 too where the GPU has such products (kernels/cuda/matmul.h).
  kFp8,
  // The same projections in four bits, a scale and a minimum per group of 32 inputs.
  kInt4,
};

inline constexpr WeightFormat kWeightFormats[] = {
    WeightFormat::kAuto, WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kF16,
    WeightFormat::kInt8, WeightFormat::kFp8, WeightFormat::kInt4};

// The groups of kInt4: q4_1, whose measured error is smaller than q4_0's (docs/quantization.md).
inline constexpr DType kInt4Groups = DType::kQ4_1;

// "auto", "f32", ..., "int4".
const char* WeightFormatName(WeightFormat format);
// INVALID_ARGUMENT naming the flag, the value and the names there are.
absl::StatusOr<WeightFormat> ParseWeightFormat(const std::string& name);
// INVALID_ARGUMENT if ranks that compute on the CPU cannot hold it.
absl::Status CheckOnCpu(WeightFormat format);

// What a matrix that the checkpoint has in `file` is held in; `projection`: of attention or MLP.
// kInt4 leaves what takes no more than five bits a weight as it is.
DType HeldDType(WeightFormat format, DType file, bool projection);

}  // namespace pergola
