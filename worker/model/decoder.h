// The forward pass of one stage: embedding or hidden state in, layers, hidden state or logits out.
// One decoder executes every family that ModelSpec can describe. Knows nothing of plans, slots and
// sampling.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/decoder_ops.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "model/layout.h"
#include "model/memory_plan.h"
#include "model/model_spec.h"
#include "worker/comm/device_reducer.h"
#include "worker/model/kv_cache.h"
#include "worker/weights/stage_weights.h"

namespace pergola {

// Where the rows of a step stand: the same for every layer. In device memory (see StepInputs).
struct StepRows {
  int64_t count = 0;
  const int32_t* positions = nullptr;  // [count]
  const int64_t* slot_of_row =
      nullptr;  // [count] block_id * block_tokens + position % block_tokens
  const int32_t* table_of_row = nullptr;  // [count]
  const int32_t* block_tables = nullptr;  // [tables, table_stride]
  int64_t table_stride = 0;
  AttentionWork attention;  // its lists of rows; a GPU's
};

// How large the decoder's buffers are.
struct DecoderBounds {
  int64_t step_rows = 0;       // most rows of a step
  int64_t logit_rows = 0;      // most rows of one Logits call; 0 outside the last stage
  int64_t context_length = 0;  // positions of the rope table
  DType activation = DType::kF32;
  DecoderBuffers buffers;  // planned for these bounds
};

class Decoder {
 public:
  // All references are borrowed and outlive the decoder. Allocates every buffer.
  Decoder(const ModelSpec& spec, const RankLayout& layout, const DecoderBounds& bounds,
          const StageWeights& weights, const KvCache& kv, Stream& stream, DeviceReducer& reducer);

  // What the constructor allocated.
  int64_t bytes() const;

  // Enqueues the stage's layers on rows.count rows; all pointers are to device memory. `ids`
  // [rows.count] is read in the first stage only; an id outside the vocabulary embeds as zeros.
  // `hidden` [rows.count, hidden] f32 is the residual stream, updated in place. Errors are the
  // reducer's, with layer and operation before them.
  absl::Status Forward(const StepRows& rows, const int32_t* ids, float* hidden);

  // Last stage: enqueues logits of this rank's vocabulary slice for some rows of `hidden`, as
  // Forward left it. `rows` lies on the host and stays until the stream is synchronised. `out`
  // [rows.size(), layout.vocabulary.size()] f32, in device memory.
  void Logits(const float* hidden, absl::Span<const int32_t> rows, float* out);

 private:
  // Attention or MLP, between its products and the norm that reads the stream with what it adds.
  struct Branch {
    int64_t layer = -1;
    const char* operation = "";
    bool open = false;     // branch_ holds what it adds
    bool partial = false;  // and that is this rank's part of the sum over the stage
  };
  // What a branch begins with: a product of the normed stream.
  struct Entry {
    const Projection& projection;
    Tensor y;
    std::optional<Activation> activation;
  };

  void PlanHeads();
  absl::Status Embed(const StepRows& rows, const int32_t* ids, float* hidden);
  absl::Status Attention(int64_t layer, const StepRows& rows, float* hidden);
  absl::Status Mlp(int64_t layer, const StepRows& rows, float* hidden);
  absl::Status BeginBranch(const NormWeights& norm, const Entry& entry, float* hidden);
  absl::Status EndBranch(const NormWeights& post_norm, int64_t rows, const Branch& branch);
  absl::Status EndLayers(int64_t rows, float* hidden);
  // Calls `op` with the arguments of the family's kind of norm.
  template <typename Op>
  auto WithNorm(const NormWeights& norm, const Tensor& residual, const Tensor& x, const Tensor& y,
                const Op& op) const;
  void Normalise(const NormWeights& norm, const Tensor& x, const Tensor& y);
  void NormaliseHeads(const LayerWeights& weights, const Tensor& qkv);
  RopeTable RopeOf(int64_t layer) const;
  void Attend(int64_t layer, const StepRows& rows, const Tensor& qkv);
  void ProjectParts(const Entry& entry, const Tensor& x);
  // [rows, columns] activations at the start of a buffer.
  Tensor Activations(const DeviceBuffer& buffer, int64_t rows, int64_t columns) const;

  const ModelSpec& spec_;
  const RankLayout& layout_;
  const StageWeights& weights_;
  const KvCache& kv_;
  Stream& stream_;
  DeviceReducer& reducer_;
  const DecoderBounds bounds_;
  const int64_t heads_local_;
  const int64_t kv_heads_local_;

  // [context_length, rope.dims / 2], then [context_length, local_rope.dims / 2]; f32
  DeviceVector<float> rope_cosine_, rope_sine_;
  DeviceVector<int32_t> kv_of_head_;  // [heads_local]
  DeviceVector<float> alibi_slopes_;  // [heads_local] or empty
  // A GPU's, see AttentionWork.
  DeviceBuffer head_groups_;
  int64_t head_group_count_ = 0, largest_head_group_ = 0;
  DeviceBuffer parts_done_;
  // Activations.
  DeviceBuffer normed_;     // [step_rows, hidden]
  DeviceBuffer qkv_;        // [step_rows, (heads_local + 2 * kv_heads_local) * head_dim]
  DeviceBuffer attended_;   // [step_rows, heads_local * head_dim]
  DeviceBuffer gate_up_;    // [step_rows, 2 * ffn_local], of an MLP with gate
  DeviceBuffer activated_;  // [step_rows, ffn_local]
  DeviceBuffer branch_;     // [step_rows, hidden]: what attention or MLP adds to the stream
  DeviceBuffer part_;       // [step_rows, most rows of a part], if a projection has several parts
  // Rows that need logits.
  DeviceBuffer picked_rows_;  // [logit_rows] i32
  DeviceBuffer picked_;       // [logit_rows, hidden] f32

  Branch before_;  // the one that has not been added to the stream yet
};

}  // namespace pergola
