#include "worker/step/stage_executor.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/status.h"
#include "kernels/decoder_ops.h"
#include "kernels/device_sampler.h"
#include "model/memory_plan.h"
#include "worker/model/decoder.h"
#include "worker/model/kv_cache.h"
#include "worker/model/step_graphs.h"
#include "worker/model/step_inputs.h"
#include "worker/step/hop.h"
#include "worker/step/slot_table.h"
#include "worker/step/token_board.h"
#include "worker/step/token_sampler.h"
#include "worker/weights/loader.h"

namespace pergola {
namespace {

// Of a row whose sampling looks back, on average, that the device's lists have room for.
constexpr int64_t kEditsPerRow = 4096;

absl::Status ValidateOptions(const ModelSpec& spec, const ExecutorOptions& options) {
  const auto refuse = [](absl::string_view name, int64_t value, absl::string_view limit) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is ", value, "; it must be ", limit));
  };
  // The bounds keep every product of two of them, and every table, far from overflow.
  if (options.slot_count < 1 || options.slot_count > 65536) {
    return refuse("slot_count", options.slot_count, "1 to 65536");
  }
  const int64_t tokens = options.block_tokens;
  if (tokens != 16 && tokens != 32 && tokens != 64 && tokens != 128) {
    return refuse("block_tokens", tokens, "16, 32, 64 or 128");
  }
  if (options.step_tokens < 1 || options.step_tokens > (1 << 20)) {
    return refuse("step_tokens", options.step_tokens, "1 to 1048576");
  }
  if (options.context_length < 0 || options.context_length > spec.context_length) {
    return refuse("context_length", options.context_length,
                  absl::StrCat("0 (the model's) to ", spec.context_length));
  }
  if (options.kv_bytes < 0) return refuse("kv_bytes", options.kv_bytes, "0 or more");
  if (options.block_count < 0) return refuse("block_count", options.block_count, "0 or more");
  if (options.kv_dtype_set && options.kv_dtype != DType::kF32 && options.kv_dtype != DType::kF16 &&
      options.kv_dtype != DType::kBF16) {
    return absl::InvalidArgumentError(absl::StrCat(
        "kv_dtype is ", ToAbsl(DTypeName(options.kv_dtype)), "; it must be f32, f16 or bf16"));
  }
  return absl::OkStatus();
}

class DecoderExecutor final : public StageExecutor {
 public:
  DecoderExecutor(const ModelSpec& spec, const RankLayout& layout, Stream& stream,
                  StageCommunicator* communicator, DeviceLinks* links)
      : spec_(spec), layout_(layout), stream_(stream), communicator_(communicator), links_(links) {}

  // Called once, before anything else.
  absl::Status Init(const Checkpoint& checkpoint, const ExecutorOptions& options,
                    const LoadProgress& progress);

  const ExecutorInfo& info() const override { return info_; }
  void LimitBlocks(int64_t block_count) override { slots_->LimitBlocks(block_count); }
  absl::Status Validate(const v1::StepPlan& plan) const override { return slots_->Validate(plan); }
  absl::Status Begin(const v1::StepPlan& plan, absl::Span<const int32_t> ids,
                     float* hidden) override;
  absl::Status Finish(std::vector<v1::EntryResult>* results) override;
  // Ranks that sample together, and stages that get their ids by message, wait for their hosts.
  bool RunsAhead() const override {
    return !on_cpu() && layout_.tensor_parallel == 1 && layout_.pipeline_parallel == 1;
  }
  bool MayBegin(const v1::StepPlan& next) const override;
  bool Ready() override {
    PERGOLA_CHECK(begun_count_ > 0);
    return sampler_ == nullptr || sampler_->Ready();
  }
  void ForgetSlots() override {
    PERGOLA_CHECK(begun_count_ == 0);
    slots_->Clear();
  }
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
  // A step in which ranks meet on the host cannot be recorded. Plans are the same on all ranks of a
  // stage, and so they record and replay the same steps. Hops are not recorded: of two
  // communicators in one recording NCCL's documentation warns, and they are one or two launches.
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
  absl::Status PlanMemory(const ShapeSpec& shape, const ExecutorOptions& options);
  void PlanSampler(const ExecutorOptions& options, MemoryLimits* limits);
  WorkspaceShape WorkspaceOf(const ShapeSpec& shape, const ExecutorOptions& options) const;
  absl::StatusOr<int64_t> BlocksOfGpu(const ShapeSpec& shape, const std::vector<RankLayout>& ranks,
                                      MemoryLimits limits, const ExecutorOptions& options) const;
  absl::Status Allocate();
  void FillInfo();

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
  // The oldest first; two only where it runs ahead.
  std::array<Begun, 2> begun_;
  int begun_count_ = 0;
};

// Every shape that the decoder's ops will have.
WorkspaceShape DecoderExecutor::WorkspaceOf(const ShapeSpec& shape,
                                            const ExecutorOptions& options) const {
  WorkspaceShape ops;
  for (const HeldMatrix& matrix : HeldBy(shape, layout_).matrices) {
    ops.matrices.push_back({matrix.dtype, matrix.rows, matrix.columns, matrix.lead});
  }
  ops.activation = activation_;
  ops.step_rows = options.step_tokens;
  ops.heads = layout_.heads.size();
  ops.head_dim = spec_.head_dim;
  return ops;
}

// As many KV blocks as the fraction of the GPU's memory holds beside the rest of the largest rank,
// at most what all slots can use: the same number on every rank of like GPUs.
absl::StatusOr<int64_t> DecoderExecutor::BlocksOfGpu(const ShapeSpec& shape,
                                                     const std::vector<RankLayout>& ranks,
                                                     MemoryLimits limits,
                                                     const ExecutorOptions& options) const {
  limits.context_length =
      options.context_length > 0 ? options.context_length : spec_.context_length;
  limits.block_count = 0;
  std::vector<MemoryPlan> plans;
  plans.reserve(ranks.size());
  for (const RankLayout& rank : ranks) plans.push_back(PlanRank(shape, rank, limits));
  const auto budget = static_cast<int64_t>(static_cast<double>(stream_.TotalBytes()) *
                                           options.gpu_memory_fraction / options.gpu_ranks);
  const int64_t most = limits.slot_count * limits.BlocksOf(limits.context_length);
  const int64_t blocks = std::min(most, LargestBlockCount(plans, budget));
  if (blocks > 0) return blocks;
  MemoryPlan least = *std::max_element(
      plans.begin(), plans.end(),
      [](const MemoryPlan& a, const MemoryPlan& b) { return a.total() < b.total(); });
  least.block_count = 1;
  const double fraction = static_cast<double>(least.total()) * options.gpu_ranks /
                          static_cast<double>(stream_.TotalBytes());
  const std::string larger =
      fraction > 1 ? "" : absl::StrCat("--gpu-memory-fraction above ", fraction, ", or ");
  return absl::ResourceExhaustedError(absl::StrCat(
      stream_.where(), ": with one block of KV cache a rank needs ", least.ToString(), ", and ",
      budget, " bytes are its part of the GPU's ", stream_.TotalBytes(), " (--gpu-memory-fraction ",
      options.gpu_memory_fraction, ", ", options.gpu_ranks, " ranks on it), ",
      least.total() - budget, " too few; ", larger, Remedies(least, budget)));
}

// The last stage's; the other stages plan for it.
void DecoderExecutor::PlanSampler(const ExecutorOptions& options, MemoryLimits* limits) {
  SamplerShape& shape = sampler_shape_;
  shape.tensor_parallel = layout_.tensor_parallel;
  shape.tp_rank = layout_.tp_rank;
  shape.vocabulary = spec_.vocabulary;
  shape.logit_rows = limits->logit_rows();
  shape.step_tokens = limits->step_tokens;
  for (int tp_rank = 0; tp_rank < layout_.tensor_parallel; ++tp_rank) {
    shape.slices.push_back(VocabularyPart(spec_, layout_.tensor_parallel, tp_rank));
  }
  RowSamplerShape& rows = device_sampler_.rows;
  rows.tasks = shape.logit_rows;
  rows.vocabulary = shape.vocabulary;
  rows.slice = shape.slices[shape.tp_rank];
  rows.widest_slice = shape.widest_slice();
  // The context served may be shorter, but that is known only when the KV is planned.
  rows.history = options.context_length > 0 ? options.context_length : spec_.context_length;
  // Some thousand ids that each row has seen, and all that a single one can look back at.
  const int64_t longest = 2 * rows.history + int64_t{kMaxLogitBiases} + int64_t{kMaxSuppressedIds};
  rows.edits = std::max(rows.tasks * std::min(rows.widest_slice, kEditsPerRow),
                        std::min(rows.widest_slice, longest));
  device_sampler_.slices = shape.slices;
  device_sampler_.entries = std::min(limits->step_tokens, limits->slot_count);
  const DeviceSamplerBytes bytes = stream_.SamplerBytes(device_sampler_);
  shape.answer_bytes = bytes.answers;
  limits->sampler_device_bytes = bytes.device;
  limits->sampler_host_bytes = bytes.pinned + bytes.host;
  limits->sampler_answer_bytes = bytes.answers;
  if (layout_.last_stage()) workspace_bytes_ = std::max(workspace_bytes_, bytes.workspace);
}

absl::Status DecoderExecutor::PlanMemory(const ShapeSpec& shape, const ExecutorOptions& options) {
  MemoryLimits limits;
  limits.slot_count = options.slot_count;
  limits.block_tokens = options.block_tokens;
  limits.step_tokens = options.step_tokens;
  activation_ = stream_.ActivationFor(options.activation_dtype_set ? options.activation_dtype
                                                                   : shape.MatrixFloat());
  if (options.activation_dtype_set && activation_ != options.activation_dtype) {
    return absl::InvalidArgumentError(
        absl::StrCat("--activation-dtype is ", ToAbsl(DTypeName(options.activation_dtype)), "; ",
                     stream_.name(), " computes in ", ToAbsl(DTypeName(activation_))));
  }
  limits.on_gpu = !on_cpu();
  limits.activation_dtype = activation_;
  limits.peer_bytes =
      DeviceReducer::PlannedBytes(staged(), limits.step_tokens * spec_.hidden, activation_);
  if (links_ != nullptr) limits.link_bytes = links_->bytes();
  workspace_bytes_ = stream_.WorkspaceBytes(WorkspaceOf(shape, options));
  PlanSampler(options, &limits);
  limits.op_workspace_bytes = workspace_bytes_;
  limits.kv_dtype = options.kv_dtype_set        ? options.kv_dtype
                    : shape.AllMatricesAreF32() ? DType::kF32
                    : on_cpu()                  ? DType::kF16
                                                : activation_;
  ASSIGN_OR_RETURN(const std::vector<RankLayout> ranks,
                   GroupLayouts(spec_, layout_.tensor_parallel, layout_.pipeline_parallel));
  KvRequest request;
  request.slot_count = options.slot_count;
  request.block_tokens = options.block_tokens;
  request.block_bytes = LargestBlockBytes(spec_, ranks, options.block_tokens, limits.kv_dtype);
  request.model_context = spec_.context_length;
  request.context_length = options.context_length;
  request.kv_bytes = options.kv_bytes;
  request.block_count = options.block_count;
  if (!on_cpu() && request.kv_bytes == 0 && request.block_count == 0) {
    ASSIGN_OR_RETURN(request.block_count, BlocksOfGpu(shape, ranks, limits, options));
  }
  ASSIGN_OR_RETURN(const KvPlan kv, PlanKv(request));
  if (!kv.shortened.empty() && layout_.world_rank == 0) LOG_WARN("{}", kv.shortened);
  limits.block_count = kv.block_count;
  limits.context_length = kv.context_length;

  kv_shape_ = KvShape{layout_.layers, layout_.kv_heads.size(), spec_.head_dim, limits.block_tokens,
                      limits.kv_dtype};
  limits_ =
      SlotLimits{limits.slot_count,     limits.block_count, limits.block_tokens, limits.step_tokens,
                 limits.context_length, spec_.vocabulary,   layout_.last_stage()};
  bounds_.step_rows = limits.step_tokens;
  bounds_.context_length = limits.context_length;
  bounds_.activation = activation_;
  bounds_.buffers = PlanDecoderBuffers(shape, layout_, limits);
  if (layout_.last_stage()) bounds_.logit_rows = limits.logit_rows();
  info_.memory = PlanRank(shape, layout_, limits);
  return absl::OkStatus();
}

// What was allocated, asked of its owners and not of the plan.
void DecoderExecutor::FillInfo() {
  info_.block_count = limits_.block_count;
  info_.context_length = limits_.context_length;
  info_.kv_dtype = kv_shape_.dtype;
  info_.dtypes =
      absl::StrCat(weights_.dtypes, " weights, ", ToAbsl(DTypeName(kv_shape_.dtype)), " kv");
  // The CPU computes in f32 whatever it holds.
  if (!on_cpu()) {
    absl::StrAppend(&info_.dtypes, ", ", ToAbsl(DTypeName(activation_)), " activations");
  }
  info_.allocated.weight_bytes[0] = weights_.bytes();
  info_.allocated.block_count = limits_.block_count;
  info_.allocated.block_bytes = kv_->bytes() / limits_.block_count;
  info_.allocated.decoder_bytes = decoder_->bytes() + workspace_.size();
  const int64_t logits = sampler_ == nullptr ? 0 : sampler_->bytes();
  if (on_cpu()) {
    info_.allocated.table_bytes = slots_->bytes();
    info_.allocated.logit_bytes = logits;
    return;
  }
  info_.allocated.residual_bytes = hidden_.size();
  info_.allocated.table_bytes = inputs_->bytes();
  info_.allocated.peer_bytes = reducer_->bytes();
  info_.allocated.link_bytes = links_ == nullptr ? 0 : links_->bytes();
  // Without the step loop's rows, as on the CPU.
  info_.allocated.host_bytes = slots_->bytes() + inputs_->pinned_bytes() + logits;
  if (sampler_ != nullptr) {
    const DeviceSamplerBytes device = stream_.SamplerBytes(device_sampler_);
    info_.allocated.logit_bytes = sampler_->device_bytes() + device.device;
    info_.allocated.host_bytes += device.pinned + device.host;
  }
  // What was taken of the device beside what its owners name.
  info_.allocated.padding_bytes =
      info_.memory.reserved() - stream_.ReservedBytesLeft() - info_.allocated.reserved();
}

absl::Status DecoderExecutor::Init(const Checkpoint& checkpoint, const ExecutorOptions& options,
                                   const LoadProgress& progress) {
  RETURN_IF_ERROR(ValidateOptions(spec_, options));
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
    const bool alone = layout_.tensor_parallel == 1;
    graphs_ = std::make_unique<StepGraphs>(stream_, *decoder_, alone);
  }
  if (!on_cpu()) {
    hidden_ = DeviceBuffer(stream_, info_.memory.residual_bytes);
  }
  if (layout_.last_stage()) {
    ASSIGN_OR_RETURN(auto device, stream_.MakeSampler(device_sampler_));
    sampler_ = std::make_unique<TokenSampler>(sampler_shape_, stream_, communicator_, *slots_,
                                              *decoder_, std::move(device));
  }
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
    if (hops_on_device() && !layout_.last_stage()) RETURN_IF_ERROR(SendHidden(values));
    if (copies && !layout_.last_stage()) stream_.CopyToHost(hidden, begun.hidden, bytes);
  }
  // What a row's choice looks back at is known when the plan before is finished.
  if (++begun_count_ > 1 || sampler_ == nullptr) return absl::OkStatus();
  // A peer that is gone shows here, not in the sampler.
  if (links_ != nullptr) RETURN_IF_ERROR(Wait(plan.plan_id()));
  return sampler_->Begin(plan, begun.hidden);
}

absl::Status DecoderExecutor::Finish(std::vector<v1::EntryResult>* results) {
  PERGOLA_CHECK(begun_count_ > 0);
  if (sampler_ == nullptr) {
    begun_count_ = 0;
    return Wait(begun_[0].plan->plan_id());
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
  // The memory of the inputs before is free then.
  RETURN_IF_ERROR(stream_.Synchronize());
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

}  // namespace

absl::StatusOr<std::unique_ptr<StageExecutor>> StageExecutor::Load(
    const Checkpoint& checkpoint, const RankLayout& layout, const ExecutorOptions& options,
    Stream& stream, StageCommunicator* communicator, const LoadProgress& progress) {
  PERGOLA_CHECK(layout.tensor_parallel == 1 || communicator != nullptr);
  auto executor = std::make_unique<DecoderExecutor>(checkpoint.spec(), layout, stream, communicator,
                                                    options.links);
  RETURN_IF_ERROR(executor->Init(checkpoint, options, progress));
  return std::unique_ptr<StageExecutor>(std::move(executor));
}

absl::Status StageExecutor::Execute(const v1::StepPlan& plan, absl::Span<const int32_t> ids,
                                    float* hidden, std::vector<v1::EntryResult>* results) {
  RETURN_IF_ERROR(Begin(plan, ids, hidden));
  return Finish(results);
}

int64_t PlanRows(const v1::StepPlan& plan) {
  int64_t rows = 0;
  for (const v1::Entry& entry : plan.entries()) rows += EntryRows(entry);
  return rows;
}

}  // namespace pergola
