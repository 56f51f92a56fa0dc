// The last stage's end of a step: logits of the rows that need them, gathered over the stage, and
// for each a token, log-probabilities, or both (DESIGN section 5). Row r is processed whole by
// tp_rank r mod TP, and a rank's rows are dealt over its threads, so every core works and nothing
// depends on how the vocabulary is cut.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/cpu_stream.h"
#include "kernels/sample.h"
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
  int64_t step_tokens = 0;    // most rows of a step

  int64_t widest_slice() const;
  // Most rows of a turn that fall to one rank.
  int64_t own_rows() const { return (logit_rows + tensor_parallel - 1) / tensor_parallel; }
};

class TokenSampler {
 public:
  // Allocates all buffers. `communicator` may be null if tensor_parallel is 1. All are borrowed.
  // Tokens are chosen on the stream's host.
  TokenSampler(const SamplerShape& shape, Stream& stream, StageCommunicator* communicator);

  // What the constructor allocated: of the host, and of a GPU.
  int64_t bytes() const;
  int64_t device_bytes() const { return device_logits_.size(); }

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
    const v1::Mask* mask = nullptr;
    int64_t row = 0;  // of the step
    int64_t slot = 0;
    uint32_t position = 0;  // of the token that the row's logits are about
    int32_t entry = 0;
    int32_t target = -1;  // id to be scored; -1: none
    int32_t target_top = 0;
    bool draw = false;
  };
  // What became of a row; sent between ranks, as TokenLogprobs is.
  struct Choice {
    int32_t id = -1;
    int32_t valid = 0;
  };
  struct RowLogprobs {
    TokenLogprobs of_id, of_target;
  };

  void ListWanted(const v1::StepPlan& plan);
  static void ListEntry(const v1::Entry& entry, int32_t number, int64_t first_row,
                        std::vector<Wanted>* wanted);
  // Whether nothing but the largest logit of the row is wanted.
  static bool IsPlain(const Wanted& wanted, const SlotTable& slots);
  // Rows [begin, begin + count) of wanted_: what became of them goes to choices_ and logprobs_.
  absl::Status SampleTurn(const SlotTable& slots, Decoder& decoder, const float* hidden,
                          int64_t begin, int64_t count);
  absl::Status ComputeLogits(Decoder& decoder, const float* hidden, int64_t count);
  absl::Status ChooseGreedily(int64_t count);
  absl::Status GatherAndDraw(const SlotTable& slots, int64_t begin, int64_t count);
  void RunOwnTasks(const SlotTable& slots, int64_t begin, int64_t count);
  void FillTask(const SlotTable& slots, const Wanted& wanted, SampleTask* task) const;
  absl::Status ExchangeChoices(int64_t begin, int64_t count);
  void Assemble(int64_t row, int64_t count, float* whole) const;
  void Answer(const SlotTable& slots, int64_t begin, int64_t count,
              std::vector<v1::EntryResult>* results) const;
  float* Slice(int rank, int64_t count) const;
  // Which rank has row `i` of the turn that begins at `begin`.
  int Owner(int64_t begin, int64_t i) const {
    return static_cast<int>((begin + i) % shape_.tensor_parallel);
  }
  // Of `count` rows, as many as any rank has: the size of each rank's part of an exchange.
  int64_t PartOf(int64_t count) const {
    return (count + shape_.tensor_parallel - 1) / shape_.tensor_parallel;
  }

  const SamplerShape shape_;
  const int64_t widest_;
  Stream& stream_;
  CpuStream& host_;
  StageCommunicator* communicator_;
  HostBuffer logits_;  // [tensor_parallel][count * widest slice] f32: rank r's part holds [count,
                       // slice of r]
  DeviceBuffer device_logits_;  // [logit_rows, slice] f32 on a GPU: this rank's of a turn
  HostBuffer whole_;            // [own_rows, vocabulary] f32: this rank's rows put together; TP > 1
  std::vector<ValueAndId> best_;       // [tensor_parallel, logit_rows]
  std::vector<SampleTask> tasks_;      // [own_rows]
  std::vector<Choice> exchanged_;      // [tensor_parallel, own_rows]
  std::vector<RowLogprobs> logprobs_;  // [tensor_parallel, own_rows]
  std::vector<Choice> choices_;        // [logit_rows]
  std::vector<int32_t> rows_;          // [logit_rows]
  std::vector<Wanted> wanted_;         // at most step_tokens
  bool turn_has_logprobs_ = false;
  bool keep_ = false;
  std::vector<std::vector<float>> kept_;
};

}  // namespace pergola
