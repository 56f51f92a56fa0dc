#include "worker/weights/stage_weights.h"

namespace pergola {
namespace {

int64_t VectorBytes(const std::vector<float>& values) {
  return static_cast<int64_t>(values.size() * sizeof(float));
}

}  // namespace

int64_t Projection::bytes() const {
  int64_t total = VectorBytes(bias);
  for (const PackedMatrix& part : parts) total += part.bytes();
  return total;
}

int64_t LayerWeights::bytes() const {
  return VectorBytes(attention_norm) + VectorBytes(mlp_norm) + qkv.bytes() + output.bytes() +
         gate_up.bytes() + down.bytes();
}

int64_t StageWeights::bytes() const {
  int64_t total = embedding.bytes() + head.bytes() + VectorBytes(final_norm);
  for (const LayerWeights& layer : layer_weights) total += layer.bytes();
  return total;
}

}  // namespace pergola
