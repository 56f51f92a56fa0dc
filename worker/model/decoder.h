// The forward pass of one stage: embedding or hidden state in, layers, hidden state or logits out.
// One decoder executes every family that ModelSpec can describe. Knows nothing of plans, slots and
// sampling.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/decoder_ops.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "model/layout.h"
#include "model/memory_plan.h"
#include "model/model_spec.h"
#include "worker/comm/communicator.h"
#include "worker/model/kv_cache.h"
#include "worker/weights/stage_weights.h"

namespace pergola {

// Where the rows of a step stand: the same for every layer.
struct StepRows {
  int64_t count = 0;
  const int32_t* positions = nullptr;  // [count]
  const int64_t* slot_of_row =
      nullptr;  // [count] block_id * block_tokens + position % block_tokens
  const int32_t* table_of_row = nullptr;  // [count]
  const int32_t* block_tables = nullptr;  // [tables, table_stride]
  int64_t table_stride = 0;
};

// How large the decoder's buffers are.
struct DecoderBounds {
  int64_t step_rows = 0;       // most rows of a step
  int64_t logit_rows = 0;      // most rows of one Logits call; 0 outside the last stage
  int64_t context_length = 0;  // positions of the rope table
  DecoderBuffers buffers;      // planned for these bounds
};

class Decoder {
 public:
  // All references are borrowed and outlive the decoder; `communicator` may be null if
  // tensor_parallel is 1. Allocates every buffer.
  Decoder(const ModelSpec& spec, const RankLayout& layout, const DecoderBounds& bounds,
          const StageWeights& weights, const KvCache& kv, Stream& stream,
          StageCommunicator* communicator);

  // What the constructor allocated.
  int64_t bytes() const;

  // Runs the stage's layers on rows.count rows. `ids` [rows.count] is read in the first stage only;
  // an id outside the vocabulary embeds as zeros. `hidden` [rows.count, hidden] f32 is the residual
  // stream, updated in place. Errors are the communicator's, with layer and operation before them.
  absl::Status Forward(const StepRows& rows, const int32_t* ids, float* hidden);

  // Last stage: logits of this rank's vocabulary slice for some rows of `hidden`, as Forward left
  // it. `out` [rows.size(), layout.vocabulary.size()] f32.
  void Logits(const float* hidden, absl::Span<const int64_t> rows, float* out);

 private:
  absl::Status Embed(const StepRows& rows, const int32_t* ids, float* hidden);
  absl::Status Attention(int64_t layer, const StepRows& rows, const float* residual, float* hidden);
  absl::Status Mlp(int64_t layer, const StepRows& rows, float* hidden);
  void EmbedPositions(const StepRows& rows, float* hidden);
  void BeginBranch(const NormWeights& norm, const float* residual, int64_t rows, float* hidden);
  absl::Status EndBranch(const NormWeights& norm, int64_t rows, int64_t layer,
                         const char* operation);
  void Normalise(const NormWeights& norm, const float* residual, int64_t rows, float* x, float* y);
  void NormaliseHeads(const LayerWeights& weights, const Tensor& qkv);
  RopeTable RopeOf(int64_t layer) const;
  void Attend(int64_t layer, const StepRows& rows, const Tensor& qkv);
  void Project(const Projection& projection, const float* x, int64_t rows, float* y);
  absl::Status Reduce(float* data, int64_t rows, int64_t layer, const char* operation);

  const ModelSpec& spec_;
  const RankLayout& layout_;
  const StageWeights& weights_;
  const KvCache& kv_;
  Stream& stream_;
  StageCommunicator* communicator_;
  const DecoderBounds bounds_;
  const int64_t heads_local_;
  const int64_t kv_heads_local_;

  // [context_length, rope.dims / 2], then [context_length, local_rope.dims / 2]
  HostBuffer rope_cosine_, rope_sine_;
  HostBuffer normed_;     // [step_rows, hidden]
  HostBuffer qkv_;        // [step_rows, (heads_local + 2 * kv_heads_local) * head_dim]
  HostBuffer attended_;   // [step_rows, heads_local * head_dim]
  HostBuffer gate_up_;    // [step_rows, 2 * ffn_local], without gate [step_rows, ffn_local]
  HostBuffer activated_;  // [step_rows, ffn_local]
  HostBuffer branch_;     // [step_rows, hidden]: what attention or MLP adds to the residual stream
  HostBuffer part_;       // [step_rows, most rows of a part], if a projection has several parts
  HostBuffer picked_;     // [logit_rows, hidden]: rows that need logits
};

}  // namespace pergola
