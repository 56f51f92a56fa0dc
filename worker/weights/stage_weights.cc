#include "worker/weights/stage_weights.h"

namespace pergola {
int64_t Projection::bytes() const {
  int64_t total = bias.bytes();
  for (const PackedMatrix& part : parts) total += part.bytes();
  return total;
}

int64_t NormWeights::bytes() const {
  return weight.bytes() + bias.bytes();
}

int64_t LayerWeights::bytes() const {
  int64_t total = qkv.bytes() + output.bytes() + gate_up.bytes() + down.bytes();
  for (const NormWeights* norm :
       {&attention_norm, &query_norm, &key_norm, &attention_post_norm, &mlp_norm, &mlp_post_norm}) {
    total += norm->bytes();
  }
  return total;
}

int64_t StageWeights::bytes() const {
  int64_t total = embedding.bytes() + positions.bytes() + head.bytes() + embedding_norm.bytes() +
                  final_norm.bytes();
  for (const LayerWeights& layer : layer_weights) total += layer.bytes();
  return total;
}

}  // namespace pergola
