// The last stage's end of a step: logits of the rows that need a token, gathered over the stage,
// and one token for each (DESIGN section 5). Row r is processed whole by tp_rank r mod TP, so every
// rank works and no choice depends on how the vocabulary is cut.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/sample.h"
#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "model/layout.h"
#include "pergola/v1/worker.pb.h"
#include "worker/comm/communicator.h"
#include "worker/model/decoder.h"
#include "worker/step/slot_table.h"

namespace pergola {

struct SamplerShape {
  int tensor_parallel = 1;
  int tp_rank = 0;
  int64_t vocabulary = 0;
  std::vector<Range> slices;  // vocabulary range of each rank of the stage
  int64_t logit_rows = 0;     // rows whose logits are held at once; more are done in turns

  int64_t widest_slice() const;
};

class TokenSampler {
 public:
  // Allocates all buffers. `communicator` may be null if tensor_parallel is 1. All are borrowed.
  TokenSampler(const SamplerShape& shape, Stream& stream, StageCommunicator* communicator);

  // What the constructor allocated.
  int64_t bytes() const;

  // One EntryResult per entry of the applied plan, the same on every rank of the stage. `hidden` as
  // Forward left it.
  absl::Status Sample(const v1::StepPlan& plan, const SlotTable& slots, Decoder& decoder,
                      const float* hidden, std::vector<v1::EntryResult>* results);

  // Test hook, see StageExecutor::KeepLogits.
  void Keep(bool keep) { keep_ = keep; }
  absl::Span<const float> Kept(int64_t row) const;

 private:
  // A row whose logits are needed.
  struct Wanted {
    int32_t entry = 0;
    int64_t row = 0;        // of the step
    uint32_t position = 0;  // of the token to be drawn
    const SlotSampling* sampling = nullptr;
    const v1::Mask* mask = nullptr;
  };

  void ListWanted(const v1::StepPlan& plan, const SlotTable& slots);
  // Rows [begin, begin + count) of wanted_: their tokens, or -1, go to tokens_.
  absl::Status SampleTurn(Decoder& decoder, const float* hidden, int64_t begin, int64_t count);
  absl::Status ChooseGreedily(int64_t count);
  absl::Status GatherAndDraw(int64_t begin, int64_t count);
  const float* WholeRow(int64_t row, int64_t count);
  int32_t Draw(const Wanted& wanted, const float* logits);
  const uint8_t* MaskBitmap(const v1::Mask& mask);
  float* Slice(int rank, int64_t count) const;

  const SamplerShape shape_;
  const int64_t widest_;
  Stream& stream_;
  StageCommunicator* communicator_;
  HostBuffer logits_;  // [tensor_parallel][count * widest slice] f32: rank r's part holds [count,
                       // slice of r]
  HostBuffer row_;     // [vocabulary] f32: one row put together
  HostBuffer bitmap_;  // ceil(vocabulary / 8) bytes
  std::vector<ValueAndId> best_;  // [tensor_parallel, logit_rows]
  std::vector<int32_t> drawn_;    // [tensor_parallel, logit_rows]
  std::vector<int32_t> tokens_;   // [logit_rows]
  std::vector<int64_t> rows_;     // [logit_rows]
  std::vector<Wanted> wanted_;
  bool keep_ = false;
  std::vector<std::vector<float>> kept_;
};

}  // namespace pergola
