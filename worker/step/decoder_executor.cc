#include "worker/step/decoder_executor.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "kernels/decoder_ops.h"
#include "worker/step/hop.h"
#include "worker/step/token_board.h"
#include "worker/weights/loader.h"

namespace pergola {

DecoderExecutor::~DecoderExecutor() {
  if (begun_count_ == 0 && computed_ == nullptr) return;
  // The first ends what waits for a peer that is gone. The plans are no longer there.
  static_cast<void>(Wait(0));
  static_cast<void>(stream_.Synchronize());
}

absl::Status DecoderExecutor::Init(const Checkpoint& checkpoint, const ExecutorOptions& options,
                                   const LoadProgress& progress) {
  RETURN_IF_ERROR(ValidateOptions(options));
  if (on_cpu()) RETURN_IF_ERROR(CheckOnCpu(options.weights));
  ASSIGN_OR_RETURN(ShapeSpec in_file, ShapeOfCheckpoint(checkpoint));
  ASSIGN_OR_RETURN(const ShapeSpec shape, WithWeightFormat(std::move(in_file), options.weights));
  // What does not fit is refused before the first weight is read.
  RETURN_IF_ERROR(PlanMemory(shape, options));
  RETURN_IF_ERROR(Prefixed(CheckFits(info_.memory, stream_.AvailableBytes()), stream_.where()));
  const absl::Status reserved = stream_.Reserve(info_.memory.reserved());
  if (!reserved.ok()) {
    return Prefixed(reserved, ToStd(absl::StrCat("the rank needs ", info_.memory.ToString())));
  }

  const ByteProgress read = [&](int64_t done, int64_t total) {
    if (progress) progress("reading weights", done, total);
  };
  LoadTimes times;
  ASSIGN_OR_RETURN(weights_,
                   LoadStageWeights(checkpoint, layout_, stream_, read, options.weights, &times));
  LOG_INFO("weights of rank {}: {}", layout_.world_rank, times.ToString());
  RETURN_IF_ERROR(Allocate());
  FillInfo();
  if (stream_.ReservedBytesLeft() != 0) {
    return absl::InternalError(absl::StrCat("of the planned ", info_.memory.reserved(), " bytes ",
                                            stream_.ReservedBytesLeft(), " are used by nothing"));
  }
  LOG_INFO("memory plan of rank {}: {} ({}, {} KV blocks of {} tokens)", layout_.world_rank,
           info_.memory.ToString(), info_.dtypes, limits_.block_count, limits_.block_tokens);
  return absl::OkStatus();
}

// Everything but the weights. An allocation that fails stays with the stream as its error.
absl::Status DecoderExecutor::Allocate() {
  workspace_ = DeviceBuffer(stream_, workspace_bytes_);
  stream_.UseWorkspace(workspace_.data(), workspace_.size());
  kv_ = std::make_unique<KvCache>(kv_shape_, limits_.block_count, stream_);
  reducer_ = std::make_unique<DeviceReducer>(stream_, communicator_, stage(),
                                             limits_.step_tokens * spec_.hidden, activation_);
  reducer_->UsePeers(peers());
  decoder_ = std::make_unique<Decoder>(spec_, layout_, bounds_, weights_, *kv_, stream_, *reducer_);
  slots_ = std::make_unique<SlotTable>(limits_);
  inputs_ = std::make_unique<StepInputs>(stream_, limits_.step_tokens, limits_.slot_count,
                                         limits_.blocks_per_sequence(),
                                         records() ? limits_.context_length : 0);
  if (records()) {
    StageCommunicator* ranks = layout_.tensor_parallel == 1 ? nullptr : communicator_;
    graphs_ = std::make_unique<StepGraphs>(stream_, *decoder_, ranks);
  }
  if (!on_cpu()) {
    hidden_ = DeviceBuffer(stream_, info_.memory.residual_bytes);
  }
  if (layout_.last_stage()) {
    ASSIGN_OR_RETURN(auto device, stream_.MakeSampler(device_sampler_));
    sampler_ = std::make_unique<TokenSampler>(sampler_shape_, stream_, communicator_, *slots_,
                                              *decoder_, std::move(device));
    sampler_->UseLinks(links_, RunsAhead());
  }
  if (hops_on_device() && !layout_.last_stage()) computed_ = stream_.MakeEvent();
  return stream_.Synchronize();
}

absl::Status DecoderExecutor::Forward(const StepInputs::Uploaded& step, float* hidden) {
  if (!step.padded) return decoder_->Forward(step.rows, step.ids, hidden);
  RETURN_IF_ERROR(graphs_->Forward(step.rows, step.ids, hidden));
  if (communicator_ == nullptr || communicator_->size() > 1) return absl::OkStatus();
  // A replay calls nobody; the group's messages move on here.
  return communicator_->AllReduce(nullptr, 0);
}

// Each GPU has its share from its own column, over its own way out, and the stage puts them
// together.
absl::Status DecoderExecutor::ReceiveHidden(int64_t values) {
  const int64_t share = HopShare(values, layout_.tensor_parallel);
  const int64_t bytes = DTypeBytes(DType::kF32, share);
  uint8_t* own = hidden_.data() + bytes * layout_.tp_rank;
  RETURN_IF_ERROR(column()->Receive(own, bytes, layout_.stage - 1));
  return stage() == nullptr ? absl::OkStatus() : stage()->AllGather(own, bytes, hidden_.data());
}

absl::Status DecoderExecutor::SendHidden(int64_t values) {
  const int64_t bytes = DTypeBytes(DType::kF32, HopShare(values, layout_.tensor_parallel));
  return column()->Send(hidden_.data() + bytes * layout_.tp_rank, bytes, layout_.stage + 1);
}

absl::Status DecoderExecutor::Wait(uint64_t plan_id) {
  if (links_ == nullptr) return stream_.Synchronize();
  return links_->Synchronize(stream_, "GPU work of plan", plan_id);
}

absl::Status DecoderExecutor::Begin(const v1::StepPlan& plan, absl::Span<const int32_t> ids,
                                    float* hidden) {
  const int64_t row_count = PlanRows(plan);
  const bool needs_ids = layout_.first_stage() || layout_.last_stage();
  if (needs_ids && static_cast<int64_t>(ids.size()) != row_count) {
    return absl::InvalidArgumentError(absl::StrCat("plan ", plan.plan_id(), " has ", row_count,
                                                   " rows but ", ids.size(), " ids"));
  }
  PERGOLA_CHECK(begun_count_ == 0 || MayBegin(plan));
  // The residual stream of the plan before is about to be overwritten.
  if (begun_count_ > 0) RETURN_IF_ERROR(sampler_->Settle());
  for (const v1::BlockCopy& copy : plan.copies()) {
    kv_->Copy(stream_, copy.from_block(), copy.to_block());
  }
  Begun& begun = begun_[begun_count_];
  begun.plan = &plan;
  begun.guesses =
      std::any_of(ids.begin(), ids.end(), [](int32_t id) { return IsTokenOfEntry(id); });
  PERGOLA_CHECK(!begun.guesses || begun_count_ > 0);
  if (begun.guesses) begun.ids.assign(ids.begin(), ids.end());
  const StepRows rows = begun.rows = slots_->Apply(plan, ids);
  const StepInputs::Uploaded step = inputs_->Upload(
      rows, ids, slots_->changes(), begun.guesses ? sampler_->device_tokens() : nullptr);
  const int64_t values = rows.count * spec_.hidden;
  const int64_t bytes = DTypeBytes(DType::kF32, values);
  const bool copies = !on_cpu() && !hops_on_device();
  begun.hidden = on_cpu() ? hidden : reinterpret_cast<float*>(hidden_.data());
  if (rows.count > 0) {
    if (copies && !layout_.first_stage()) stream_.CopyToDevice(begun.hidden, hidden, bytes);
    if (hops_on_device() && !layout_.first_stage()) RETURN_IF_ERROR(ReceiveHidden(values));
    RETURN_IF_ERROR(Forward(step, begun.hidden));
    if (computed_ != nullptr) {
      stream_.Record(*computed_);
      RETURN_IF_ERROR(SendHidden(values));
    }
    if (copies && !layout_.last_stage()) stream_.CopyToHost(hidden, begun.hidden, bytes);
  }
  // What a row's choice looks back at is known when the plan before is finished.
  if (++begun_count_ > 1 || sampler_ == nullptr) return absl::OkStatus();
  return sampler_->Begin(plan, begun.hidden);
}

absl::Status DecoderExecutor::Finish(std::vector<v1::EntryResult>* results) {
  PERGOLA_CHECK(begun_count_ > 0);
  if (sampler_ == nullptr) {
    begun_count_ = 0;
    const uint64_t plan_id = begun_[0].plan->plan_id();
    // The device keeps the next step behind the send; the host need not wait for the next stage.
    if (computed_ == nullptr || begun_[0].rows.count == 0) return Wait(plan_id);
    return links_->Wait(stream_, *computed_, "GPU work of plan", plan_id, /*ahead=*/false);
  }
  RETURN_IF_ERROR(sampler_->Finish(results));
  if (--begun_count_ == 0) return absl::OkStatus();
  std::swap(begun_[0], begun_[1]);
  if (begun_[0].guesses) RETURN_IF_ERROR(ConfirmGuesses(*results));
  return sampler_->Begin(*begun_[0].plan, begun_[0].hidden);
}

// The results of the plan before say whether the ids with which a forward pass was enqueued are
// right. If not, it is repeated: it reads nothing that it writes but the KV of its own rows.
absl::Status DecoderExecutor::ConfirmGuesses(const std::vector<v1::EntryResult>& results) {
  Begun& begun = begun_[0];
  bool right = true;
  for (int32_t& id : begun.ids) {
    if (!IsTokenOfEntry(id)) continue;
    const int64_t entry = TokenOfEntry(id);
    id = LastToken(results[entry]);
    right = right && id == sampler_->Guess(entry);
  }
  slots_->Correct(*begun.plan, begun.ids);
  if (right) return absl::OkStatus();
  ++repeated_passes_;
  LOG_DEBUG("the forward pass of plan {} is repeated: a token was guessed wrong",
            begun.plan->plan_id());
  // The memory of the inputs before is free then.
  RETURN_IF_ERROR(Wait(begun.plan->plan_id()));
  return Forward(inputs_->Upload(begun.rows, begun.ids, {}), begun.hidden);
}

bool DecoderExecutor::MayBegin(const v1::StepPlan& next) const {
  if (begun_count_ == 0) return true;
  if (!RunsAhead() || begun_count_ == 2) return false;
  const v1::StepPlan& before = *begun_[0].plan;
  for (const v1::Entry& entry : next.entries()) {
    const bool refers = entry.ids().empty() && entry.from().plan_id() == before.plan_id();
    if (refers && !sampler_->guesses()) return false;
  }
  // A slot that starts anew forgets what its last row was drawn with.
  for (const v1::SlotStart& start : next.starts()) {
    for (const v1::Entry& entry : before.entries()) {
      if (entry.slot() == start.slot()) return false;
    }
  }
  return true;
}

}  // namespace pergola
