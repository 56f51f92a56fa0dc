// A model as shapes: every weight, its dtype and how it is dealt to ranks. All that a memory plan
// and a cost model need, so that a model can be planned that is on no disk here. Not for computing:
// the decoder reads ModelSpec.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/dtype.h"
#include "model/layout.h"
#include "model/model_spec.h"
#include "model/weight_format.h"

namespace pergola {

// What a weight is printed under; biases go with their matrix.
enum class WeightKind : uint8_t { kEmbedding, kAttention, kMlp, kNorms, kLmHead };
inline constexpr int kWeightKinds = 5;
inline bool IsProjection(WeightKind kind) {
  return kind == WeightKind::kAttention || kind == WeightKind::kMlp;
}
WeightKind KindOf(Role role);
// "embedding", "attention", "MLP", "norms", "LM head".
const char* WeightKindName(WeightKind kind);

struct WeightShape {
  WeightKind kind = WeightKind::kEmbedding;
  WeightPlace place = WeightPlace::kLayer;
  int64_t layer = -1;
  Split split = Split::kReplicated;
  std::vector<int64_t> shape;  // [rows, columns], or [rows] for a vector, which is held as f32
  DType dtype = DType::kF32;
  // Neighbours of one layer, stack and dtype are packed as one tall matrix (q, k, v; gate, up).
  int stack = 0;

  bool matrix() const { return shape.size() == 2; }
};

struct ShapeSpec {
  ModelSpec spec;                    // sizes only where it comes from KnownShape
  std::vector<WeightShape> weights;  // in the order of computation

  // Values of all weights, a tied one once.
  int64_t ParameterCount() const;
  // "f16" or, of a file that mixes, "q4_1+q8_0".
  std::string MatrixDTypes() const;
  bool AllMatricesAreF32() const;
  // The float type that suits the matrices: f32 if all are f32, f16 if some are f16 and none bf16,
  // else bf16, whose range holds what any model computes.
  DType MatrixFloat() const;
};

// The shapes a checkpoint holds. INTERNAL if a weight's tensor is missing.
absl::StatusOr<ShapeSpec> ShapeOfCheckpoint(const Checkpoint& checkpoint);

// The shape of a public model by name, its matrices in `dtype`. NOT_FOUND naming the known ones.
absl::StatusOr<ShapeSpec> KnownShape(const std::string& name, DType dtype);
// "bloom-176b, starcoder-15.5b, ...".
std::string KnownShapeNames();
bool IsKnownShape(const std::string& name);

// The same model with every matrix in `dtype`. INVALID_ARGUMENT if a matrix's rows are not whole
// blocks of it.
absl::StatusOr<ShapeSpec> WithMatrixDType(ShapeSpec shape, DType dtype);
// The same model as `format` holds it. INVALID_ARGUMENT if a row is too long for it.
absl::StatusOr<ShapeSpec> WithWeightFormat(ShapeSpec shape, WeightFormat format);

// A matrix as one rank holds it, packed.
struct HeldMatrix {
  WeightKind kind = WeightKind::kEmbedding;
  int64_t layer = -1;
  int stack = 0;
  Split split = Split::kReplicated;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  int lead = 0;  // values of the first block that lie before the cut

  int64_t bytes(bool on_gpu) const;
};

struct HeldWeights {
  std::vector<HeldMatrix> matrices;
  int64_t vector_bytes[kWeightKinds] = {};
  // The same one by one: what is stacked shares a vector.
  std::vector<int64_t> vectors;
};

// What a rank of this layout holds.
HeldWeights HeldBy(const ShapeSpec& shape, const RankLayout& layout);

}  // namespace pergola
