#include "worker/step/stage_executor.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/status.h"
#include "model/memory_plan.h"
#include "worker/model/decoder.h"
#include "worker/model/kv_cache.h"
#include "worker/model/step_graphs.h"
#include "worker/model/step_inputs.h"
#include "worker/step/hop.h"
#include "worker/step/slot_table.h"
#include "worker/step/token_sampler.h"
#include "worker/weights/loader.h"

namespace pergola {
namespace {

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
  absl::Status Execute(const v1::StepPlan& plan, absl::Span<const int32_t> ids, float* hidden,
                       std::vector<v1::EntryResult>* results) override;
  bool hops_on_device() const override { return column() != nullptr; }
  void ForgetSlots() override { slots_->Clear(); }
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
  absl::Status Forward(const StepInputs::Uploaded& step, float* hidden);
  absl::Status PlanMemory(const ShapeSpec& shape, const ExecutorOptions& options);
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
  return absl::ResourceExhaustedError(absl::StrCat(
      "a rank needs ", plans[layout_.world_rank].ToString(), " beside the KV cache, and ", budget,
      " bytes are its part of the GPU's ", stream_.TotalBytes(), " (--gpu-memory-fraction ",
      options.gpu_memory_fraction, ", ", options.gpu_ranks,
      " ranks on it); use more GPUs, a larger fraction or a smaller dtype"));
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
  if (links_ != nullptr) limits.peer_bytes += links_->bytes();
  limits.op_workspace_bytes = workspace_bytes_ =
      stream_.WorkspaceBytes(WorkspaceOf(shape, options));
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
  if (layout_.last_stage()) {
    bounds_.logit_rows = limits.logit_rows();
    sampler_shape_.tensor_parallel = layout_.tensor_parallel;
    sampler_shape_.tp_rank = layout_.tp_rank;
    sampler_shape_.vocabulary = spec_.vocabulary;
    sampler_shape_.logit_rows = bounds_.logit_rows;
    sampler_shape_.step_tokens = limits.step_tokens;
    for (int tp_rank = 0; tp_rank < layout_.tensor_parallel; ++tp_rank) {
      sampler_shape_.slices.push_back(VocabularyPart(spec_, layout_.tensor_parallel, tp_rank));
    }
  }
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
  info_.allocated.logit_bytes = sampler_ == nullptr ? 0 : sampler_->device_bytes();
  info_.allocated.peer_bytes = reducer_->bytes() + (links_ == nullptr ? 0 : links_->bytes());
  info_.allocated.host_bytes = slots_->bytes() + logits;
}

absl::Status DecoderExecutor::Init(const Checkpoint& checkpoint, const ExecutorOptions& options,
                                   const LoadProgress& progress) {
  RETURN_IF_ERROR(ValidateOptions(spec_, options));
  ASSIGN_OR_RETURN(ShapeSpec in_file, ShapeOfCheckpoint(checkpoint));
  ASSIGN_OR_RETURN(const ShapeSpec shape, WithWeightFormat(std::move(in_file), options.weights));
  // What does not fit is refused before the first weight is read.
  RETURN_IF_ERROR(PlanMemory(shape, options));
  RETURN_IF_ERROR(CheckFits(info_.memory, stream_.AvailableBytes()));

  const ByteProgress read = [&](int64_t done, int64_t total) {
    if (progress) progress("reading weights", done, total);
  };
  ASSIGN_OR_RETURN(weights_, LoadStageWeights(checkpoint, layout_, stream_, read, options.weights));
  RETURN_IF_ERROR(Allocate());
  FillInfo();
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
  if (records()) graphs_ = std::make_unique<StepGraphs>(stream_, *decoder_);
  if (!on_cpu()) {
    hidden_ = DeviceBuffer(stream_, info_.memory.residual_bytes);
  }
  if (layout_.last_stage()) {
    sampler_ = std::make_unique<TokenSampler>(sampler_shape_, stream_, communicator_);
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

absl::Status DecoderExecutor::Execute(const v1::StepPlan& plan, absl::Span<const int32_t> ids,
                                      float* hidden, std::vector<v1::EntryResult>* results) {
  const int64_t row_count = PlanRows(plan);
  const bool needs_ids = layout_.first_stage() || layout_.last_stage();
  if (needs_ids && static_cast<int64_t>(ids.size()) != row_count) {
    return absl::InvalidArgumentError(absl::StrCat("plan ", plan.plan_id(), " has ", row_count,
                                                   " rows but ", ids.size(), " ids"));
  }
  for (const v1::BlockCopy& copy : plan.copies()) {
    kv_->Copy(stream_, copy.from_block(), copy.to_block());
  }
  const StepRows rows = slots_->Apply(plan, ids);
  const StepInputs::Uploaded step = inputs_->Upload(rows, ids, slots_->changes());
  const int64_t values = rows.count * spec_.hidden;
  const int64_t bytes = DTypeBytes(DType::kF32, values);
  const bool copies = !on_cpu() && !hops_on_device();
  float* stream_of_rows = on_cpu() ? hidden : reinterpret_cast<float*>(hidden_.data());
  if (rows.count > 0) {
    if (copies && !layout_.first_stage()) stream_.CopyToDevice(stream_of_rows, hidden, bytes);
    if (hops_on_device() && !layout_.first_stage()) RETURN_IF_ERROR(ReceiveHidden(values));
    RETURN_IF_ERROR(Forward(step, stream_of_rows));
    if (hops_on_device() && !layout_.last_stage()) RETURN_IF_ERROR(SendHidden(values));
    if (copies && !layout_.last_stage()) stream_.CopyToHost(hidden, stream_of_rows, bytes);
  }
  RETURN_IF_ERROR(Wait(plan.plan_id()));
  if (sampler_ == nullptr) return absl::OkStatus();
  return sampler_->Sample(plan, *slots_, *decoder_, stream_of_rows, results);
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

int64_t PlanRows(const v1::StepPlan& plan) {
  int64_t rows = 0;
  for (const v1::Entry& entry : plan.entries()) rows += EntryRows(entry);
  return rows;
}

}  // namespace pergola
