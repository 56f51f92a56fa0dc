// The weights one rank holds, packed for the matmul and const after load. How they came here is
// loader.h's business; the decoder asks for one layer at a time, so that a source that streams
// layers can stand behind the same accessor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/matmul.h"
#include "kernels/stream.h"
#include "model/layout.h"

namespace pergola {

// One or more weight matrices over the same input, stacked by output (q, k, v; gate, up; or a
// single one).
struct Projection {
  // Neighbours of one dtype share a matrix; a checkpoint that mixes dtypes gets several.
  std::vector<PackedMatrix> parts;
  DeviceVector<float> bias;  // [rows]; empty: none, or added by another rank
  int64_t rows = 0;          // outputs of all parts together
  int64_t columns = 0;

  int64_t bytes() const;
};

struct NormWeights {
  DeviceVector<float> weight;  // [hidden] or [head_dim]; empty: there is no such norm
  DeviceVector<float> bias;    // as long, of a LayerNorm; else empty

  int64_t bytes() const;
};

struct LayerWeights {
  NormWeights attention_norm;
  Projection qkv;                    // [(heads_local + 2 * kv_heads_local) * head_dim, hidden]
  Projection output;                 // [hidden, heads_local * head_dim]; bias on tp_rank 0 only
  NormWeights query_norm, key_norm;  // of a head
  NormWeights attention_post_norm;
  NormWeights mlp_norm;
  Projection gate_up;  // [2 * ffn_local, hidden], or [ffn_local, hidden] of an MLP without gate
  Projection down;     // [hidden, ffn_local]; bias on tp_rank 0 only
  NormWeights mlp_post_norm;

  int64_t bytes() const;
};

// All weights of a rank, resident in the memory of its device.
struct StageWeights {
  Range layers;
  std::vector<LayerWeights> layer_weights;  // [layers.size()]
  PackedMatrix embedding;                   // [vocabulary_local, hidden], in the first stage
  PackedMatrix positions;      // [positions_local, hidden], in the first stage if they are learned
  NormWeights embedding_norm;  // in the first stage
  PackedMatrix head;  // [vocabulary_local, hidden], in the last stage unless it is the embedding
  bool head_is_embedding = false;  // tied, and this rank is in the first and the last stage
  NormWeights final_norm;          // in the last stage
  std::string dtypes;              // of the matrices, "q4_1+q8_0"

  // `layer` counts over the whole model.
  const LayerWeights& Layer(int64_t layer) const {
    PERGOLA_CHECK(layer >= layers.begin && layer < layers.end);
    return layer_weights[layer - layers.begin];
  }
  const PackedMatrix& lm_head() const { return head_is_embedding ? embedding : head; }
  int64_t bytes() const;
};

}  // namespace pergola
