// What an executor's options mean in bytes: the memory plan, and what became of it.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/log.h"
#include "base/status.h"
#include "model/memory_plan.h"
#include "worker/step/decoder_executor.h"

namespace pergola {
namespace {

// Of a row whose sampling looks back, on average, that the device's lists have room for.
constexpr int64_t kEditsPerRow = 4096;

}  // namespace

absl::Status DecoderExecutor::ValidateOptions(const ExecutorOptions& options) const {
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
  if (options.context_length < 0 || options.context_length > spec_.context_length) {
    return refuse("context_length", options.context_length,
                  absl::StrCat("0 (the model's) to ", spec_.context_length));
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
  device_sampler_.group = stage();
  device_sampler_.entries = std::min(limits->step_tokens, limits->slot_count);
  const DeviceSamplerBytes bytes = stream_.SamplerBytes(device_sampler_);
  shape.answer_bytes = device_sampler_.gathers() ? 0 : bytes.answers;
  limits->sampler_device_bytes = bytes.device;
  limits->sampler_host_bytes = bytes.pinned + bytes.host;
  limits->sampler_answer_bytes = shape.answer_bytes;
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

}  // namespace pergola
