// The last stage's end of a step: logits of the rows that need them, and for each a token,
// log-probabilities, or both (DESIGN section 5). Rows are done in turns, as many at once as there
// is room for.
//
// On the CPU the logits are gathered over the stage, row r is processed whole by tp_rank r mod TP,
// and a rank's rows are dealt over its threads, so every core works and nothing depends on how the
// vocabulary is cut. On a GPU they stay where they are, and the ranks, or their devices, exchange
// the devices' answers (kernels/device_sampler.h); rows that a device cannot do go the CPU's way.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cpu_stream.h"
#include "kernels/device_sampler.h"
#include "kernels/sample.h"
#include "kernels/tensor.h"
#include "model/layout.h"
#include "pergola/v1/worker.pb.h"
#include "worker/comm/communicator.h"
#include "worker/comm/device_links.h"
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
  int64_t answer_bytes = 0;   // of a GPU, most (DeviceSamplerBytes); 0: the devices exchange them

  int64_t widest_slice() const;
  // Most rows of a turn that fall to one rank.
  int64_t own_rows() const { return (logit_rows + tensor_parallel - 1) / tensor_parallel; }
};

class TokenSampler {
 public:
  // Allocates all buffers. `communicator` may be null if tensor_parallel is 1. `slots`, `decoder`
  // and the rest are borrowed. `device`: of the stream; null on the CPU, where tokens are chosen on
  // the stream's host.
  TokenSampler(const SamplerShape& shape, Stream& stream, StageCommunicator* communicator,
               const SlotTable& slots, Decoder& decoder, std::unique_ptr<DeviceSampler> device);

  // From now on waits for the device see a peer's failure. Borrowed, may be null. `ahead`: mostly
  // the device has the next step when this one is waited for.
  void UseLinks(DeviceLinks* links, bool ahead) {
    links_ = links;
    ahead_ = ahead;
  }

  // What the constructor allocated: of the host, and of a GPU; without the device sampler's.
  int64_t bytes() const;
  int64_t device_bytes() const { return device_logits_.size(); }

  // A step's calls: Begin, Settle if more is enqueued, Finish. Begin enqueues the first turn of the
  // applied plan; `plan` stays until Finish, and `hidden`, as Forward left it, until Settle.
  absl::Status Begin(const v1::StepPlan& plan, const float* hidden);
  // Returns when `hidden` is needed no more: all turns but the last are done, which waits for them.
  absl::Status Settle();
  // Whether Finish would not wait, as far as the last enqueued turn goes; a peer's failure.
  absl::StatusOr<bool> Ready();
  // One EntryResult per entry of the plan, the same on every rank of the stage.
  absl::Status Finish(std::vector<v1::EntryResult>* results);

  // Between Begin and Finish: whether the device guesses what the plan's entries sample, and where.
  // Not if they take more turns than are enqueued.
  bool guesses() const {
    return guesses_ && begin_ + count_ == static_cast<int64_t>(wanted_.size());
  }
  const int32_t* device_tokens() const { return device_->device_tokens(); }
  // After Finish: the guess for an entry that has a token.
  int32_t Guess(int64_t entry) const { return device_->tokens()[entry]; }

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
    bool last_draw = false;  // of its entry
  };
  // What became of a row; sent between ranks, as TokenLogprobs is.
  struct Choice {
    int32_t id = -1;
    int32_t valid = 0;
  };
  struct RowLogprobs {
    TokenLogprobs of_id, of_target;
  };

  // What is known of a row of the turn.
  struct Outcome {
    Choice choice;
    const TokenLogprobs* of_id;
    const TokenLogprobs* of_target;
  };

  void ListWanted(const v1::StepPlan& plan);
  static void ListEntry(const v1::Entry& entry, int32_t number, int64_t first_row,
                        std::vector<Wanted>* wanted);
  // A turn: rows [begin_, begin_ + count_) of wanted_.
  absl::Status WaitForTurn();
  absl::Status StartTurn();
  absl::Status FinishTurn();
  void Answer();
  Outcome OutcomeOf(int64_t i) const;
  void FillTask(const Wanted& wanted, SampleTask* task) const;

  // On the host (token_sampler_host.cc). `picked_`: rows of the turn.
  absl::Status ChooseOnHost();
  bool TurnIsPlain() const;
  absl::Status ChooseGreedily();
  // Brings the picked rows' logits to every rank: rank r's slices at Slice(r, rows picked).
  absl::Status GatherPicked();
  void KeepPicked();
  // Leaves what became of picked_[i] in choices_[i] and logprobs_.
  absl::Status DrawPicked();
  void RunOwnTasks();
  absl::Status ExchangeChoices();
  void Assemble(int64_t row, float* whole) const;
  float* Slice(int rank, int64_t count) const;

  // On the device (token_sampler_device.cc).
  absl::Status EnqueueChoice();
  absl::Status MergeAnswers();
  absl::Status ChooseLeft();
  void PickAll();

  int64_t picked() const { return static_cast<int64_t>(picked_.size()); }
  // Of `count` rows, as many as any rank has: the size of each rank's part of an exchange.
  int64_t PartOf(int64_t count) const {
    return (count + shape_.tensor_parallel - 1) / shape_.tensor_parallel;
  }
  // Where the answer to the i-th picked row lies in an exchange.
  int64_t PlaceOf(int64_t i) const {
    return i % shape_.tensor_parallel * PartOf(picked()) + i / shape_.tensor_parallel;
  }
  float* device_logits() const { return reinterpret_cast<float*>(device_logits_.data()); }
  int32_t* rows() const { return reinterpret_cast<int32_t*>(rows_.data()); }

  const SamplerShape shape_;
  const int64_t widest_;
  Stream& stream_;
  CpuStream& host_;
  StageCommunicator* communicator_;
  const SlotTable& slots_;
  Decoder& decoder_;
  const std::unique_ptr<DeviceSampler> device_;
  const std::unique_ptr<StreamEvent> turn_done_;
  HostBuffer logits_;  // [tensor_parallel][count * widest slice] f32: rank r's part holds [count,
                       // slice of r]
  DeviceBuffer device_logits_;  // [logit_rows, slice] f32 on a GPU: this rank's of a turn
  HostBuffer whole_;            // [own_rows, vocabulary] f32: this rank's rows put together; TP > 1
  HostBuffer gathered_;         // [tensor_parallel, answers]: the devices', where hosts exchange
  DeviceBuffer rows_;           // [logit_rows] i32, pinned: of the step, that the turn is about
  std::vector<ValueAndId> best_;       // [tensor_parallel, logit_rows]
  std::vector<SampleTask> own_tasks_;  // [own_rows]
  std::vector<Choice> exchanged_;      // [tensor_parallel, own_rows]
  std::vector<RowLogprobs> logprobs_;  // [tensor_parallel, own_rows]
  std::vector<Choice> choices_;        // [logit_rows]
  std::vector<int32_t> picked_;        // at most logit_rows
  std::vector<SampleTask> tasks_;      // [logit_rows] on a GPU
  std::vector<int32_t> entries_;       // [logit_rows] on a GPU
  std::vector<Wanted> wanted_;         // at most step_tokens
  DeviceLinks* links_ = nullptr;
  bool ahead_ = false;
  // Of the plan that has begun.
  uint64_t plan_id_ = 0;
  const float* hidden_ = nullptr;
  std::vector<v1::EntryResult> results_;
  bool guesses_ = false;  // all that its turns so far sample
  int64_t begin_ = 0, count_ = 0;
  bool turn_has_logprobs_ = false;
  bool keep_ = false;
  std::vector<std::vector<float>> kept_;
};

}  // namespace pergola
