// The StageExecutor of a decoder model: slots, KV, the forward pass, and in the last stage the
// choice of tokens (worker/step/stage_executor.h has the contract). decoder_executor_plan.cc plans
// its memory.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "kernels/device_sampler.h"
#include "model/memory_plan.h"
#include "worker/comm/device_reducer.h"
#include "worker/model/decoder.h"
#include "worker/model/kv_cache.h"
#include "worker/model/step_graphs.h"
#include "worker/model/step_inputs.h"
#include "worker/step/slot_table.h"
#include "worker/step/stage_executor.h"
#include "worker/step/token_sampler.h"
#include "worker/weights/stage_weights.h"

namespace pergola {

class DecoderExecutor final : public StageExecutor {
 public:
  DecoderExecutor(const ModelSpec& spec, const RankLayout& layout, Stream& stream,
                  StageCommunicator* communicator, DeviceLinks* links)
      : spec_(spec), layout_(layout), stream_(stream), communicator_(communicator), links_(links) {}

  // What was begun and failed may still run: it must not outlive its memory.
  ~DecoderExecutor() override;

  // Called once, before anything else.
  absl::Status Init(const Checkpoint& checkpoint, const ExecutorOptions& options,
                    const LoadProgress& progress);

  const ExecutorInfo& info() const override { return info_; }
  void LimitBlocks(int64_t block_count) override { slots_->LimitBlocks(block_count); }
  absl::Status Validate(const v1::StepPlan& plan) const override { return slots_->Validate(plan); }
  absl::Status Begin(const v1::StepPlan& plan, absl::Span<const int32_t> ids,
                     float* hidden) override;
  absl::Status Finish(std::vector<v1::EntryResult>* results) override;
  // Ranks that meet on the host, and stages that get their ids by message, wait for their hosts.
  bool RunsAhead() const override {
    return !on_cpu() && layout_.pipeline_parallel == 1 &&
           (layout_.tensor_parallel == 1 || stage() != nullptr);
  }
  bool MayBegin(const v1::StepPlan& next) const override;
  absl::StatusOr<bool> Ready() override {
    PERGOLA_CHECK(begun_count_ > 0);
    if (sampler_ == nullptr) return true;
    return sampler_->Ready();
  }
  int64_t repeated_passes() const override { return repeated_passes_; }
  void ForgetSlots() override {
    PERGOLA_CHECK(begun_count_ == 0);
    slots_->Clear();
  }
  absl::Status Drain() override { return computed_ == nullptr ? absl::OkStatus() : Wait(0); }
  bool hops_on_device() const override { return column() != nullptr; }
  int64_t recordings() const override { return graphs_ == nullptr ? 0 : graphs_->recordings(); }
  void KeepLogits(bool keep) override {
    if (sampler_ != nullptr) sampler_->Keep(keep);
  }
  absl::Span<const float> Logits(int64_t row) const override {
    PERGOLA_CHECK(sampler_ != nullptr);
    return sampler_->Kept(row);
  }

 private:
  bool on_cpu() const { return stream_.device() == Device::kCpu; }
  DeviceGroup* stage() const { return links_ == nullptr ? nullptr : links_->stage(); }
  DeviceGroup* column() const { return links_ == nullptr ? nullptr : links_->column(); }
  PeerReducer* peers() const { return links_ == nullptr ? nullptr : links_->peers(); }
  // A step in which ranks meet on the host cannot be recorded. Hops are not: of two communicators
  // in one recording NCCL's documentation warns, and they are one or two launches.
  bool records() const {
    return stream_.records() &&
           (layout_.tensor_parallel == 1 || stage() != nullptr || PeersTakeAll());
  }
  bool PeersTakeAll() const {
    const int64_t values = bounds_.step_rows * spec_.hidden;
    return peers() != nullptr && DTypeBytes(DType::kF32, values) <= peers()->most_bytes();
  }
  // Ranks meet within a step on the host.
  bool staged() const { return !on_cpu() && layout_.tensor_parallel > 1 && stage() == nullptr; }
  absl::Status ReceiveHidden(int64_t values);
  absl::Status SendHidden(int64_t values);
  absl::Status Wait(uint64_t plan_id);
  // A plan that is not finished.
  struct Begun {
    const v1::StepPlan* plan = nullptr;
    StepRows rows;             // the host's
    float* hidden = nullptr;   // the device's
    bool guesses = false;      // some of its ids are the device's guesses
    std::vector<int32_t> ids;  // then: as given to Begin
  };

  absl::Status Forward(const StepInputs::Uploaded& step, float* hidden);
  absl::Status ConfirmGuesses(const std::vector<v1::EntryResult>& results);

  // decoder_executor_plan.cc
  absl::Status ValidateOptions(const ExecutorOptions& options) const;
  absl::Status PlanMemory(const ShapeSpec& shape, const ExecutorOptions& options);
  void PlanSampler(const ExecutorOptions& options, MemoryLimits* limits);
  WorkspaceShape WorkspaceOf(const ShapeSpec& shape, const ExecutorOptions& options) const;
  absl::StatusOr<int64_t> BlocksOfGpu(const ShapeSpec& shape, const std::vector<RankLayout>& ranks,
                                      MemoryLimits limits, const ExecutorOptions& options) const;
  void FillInfo();

  absl::Status Allocate();

  const ModelSpec spec_;
  const RankLayout layout_;
  Stream& stream_;
  StageCommunicator* communicator_;
  DeviceLinks* links_;
  StageWeights weights_;
  KvShape kv_shape_;
  DecoderBounds bounds_;
  SlotLimits limits_;
  SamplerShape sampler_shape_;
  DeviceSamplerShape device_sampler_;
  ExecutorInfo info_;
  DType activation_ = DType::kF32;
  int64_t workspace_bytes_ = 0;  // as planned
  DeviceBuffer workspace_;       // of a GPU's ops
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<DeviceReducer> reducer_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<SlotTable> slots_;
  std::unique_ptr<StepInputs> inputs_;
  std::unique_ptr<StepGraphs> graphs_;     // where steps are recorded
  DeviceBuffer hidden_;                    // [step_tokens, hidden] f32 and padding, on a GPU
  std::unique_ptr<TokenSampler> sampler_;  // last stage only
  // The layers of the newest plan; where the hidden state then goes from device to device.
  std::unique_ptr<StreamEvent> computed_;
  // The oldest first; two only where it runs ahead.
  std::array<Begun, 2> begun_;
  int begun_count_ = 0;
  int64_t repeated_passes_ = 0;
};

}  // namespace pergola
