#include "model/memory_plan.h"

#include <algorithm>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/limits.h"
#include "base/status.h"
#include "model/cuda_packed_size.h"
#include "model/device_piece.h"

namespace pergola {
namespace {

// KV of a rank when nobody asks for more: enough for a demo, small enough for several ranks on a
// laptop.
constexpr int64_t kDefaultKvBytes = int64_t{1} << 30;
constexpr int64_t kMinLogitRows = 64;

std::string MiB(int64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

// Outputs of the widest matrix among projections that hold several; 0 if none does.
int64_t WidestPart(const HeldWeights& held) {
  std::map<std::pair<int64_t, int>, std::vector<int64_t>> rows;
  for (const HeldMatrix& matrix : held.matrices) {
    if (matrix.stack != 0) rows[{matrix.layer, matrix.stack}].push_back(matrix.rows);
  }
  int64_t widest = 0;
  for (const auto& [projection, parts] : rows) {
    if (parts.size() > 1) widest = std::max(widest, *std::max_element(parts.begin(), parts.end()));
  }
  return widest;
}

// Between the pieces of a GPU's memory, each of which one object owns; the KV's is not in it.
int64_t PaddingOf(const HeldWeights& held, const DecoderBuffers& buffers,
                  const MemoryLimits& limits, const MemoryPlan& plan) {
  int64_t total = buffers.padding();
  for (const int64_t bytes : held.vectors) total += DevicePadding(bytes);
  for (const HeldMatrix& matrix : held.matrices) {
    total += DevicePadding(matrix.bytes(/*on_gpu=*/true));
  }
  const int64_t inputs = limits.step_tokens * kStepInputRowBytes;
  for (const int64_t piece : {limits.op_workspace_bytes, plan.residual_bytes, inputs,
                              plan.table_bytes - inputs, plan.logit_bytes, plan.peer_bytes}) {
    total += DevicePadding(piece);
  }
  return total;
}

}  // namespace

int64_t MemoryLimits::logit_rows() const {
  return std::min(step_tokens, std::max(slot_count, kMinLogitRows));
}

DecoderBuffers PlanDecoderBuffers(const ShapeSpec& shape, const RankLayout& layout,
                                  const MemoryLimits& limits) {
  const ModelSpec& spec = shape.spec;
  const auto bytes = [&](int64_t values) { return DTypeBytes(limits.activation_dtype, values); };
  const int64_t rows = limits.step_tokens;
  const int64_t heads = layout.heads.size();
  DecoderBuffers buffers;
  const auto words = [](int64_t values) { return values * static_cast<int64_t>(sizeof(float)); };
  // The rope table is f32 whatever the activations are.
  const int64_t angles = (spec.rope.dims + spec.local_rope.dims) / 2;
  buffers.rope = words(limits.context_length * angles);
  buffers.normed = bytes(rows * spec.hidden);
  buffers.qkv = bytes(rows * (heads + 2 * layout.kv_heads.size()) * spec.head_dim);
  buffers.attended = bytes(rows * heads * spec.head_dim);
  // Without gate the product writes what the activation gives.
  buffers.gate_up = spec.gated_mlp ? bytes(2 * rows * layout.ffn.size()) : 0;
  buffers.activated = bytes(rows * layout.ffn.size());
  buffers.branch = bytes(rows * spec.hidden);
  buffers.part = bytes(rows * WidestPart(HeldBy(shape, layout)));
  buffers.slopes = !spec.alibi_slopes.empty();
  buffers.heads = words(buffers.slopes ? 2 * heads : heads);
  if (limits.on_gpu) {
    // There are at most as many groups as heads.
    buffers.head_groups = words(2 * heads);
    buffers.parts_done = words(rows * heads);
  }
  if (layout.last_stage()) {
    buffers.picked = words(limits.logit_rows() * spec.hidden);
    buffers.picked_rows = words(limits.logit_rows());
  }
  return buffers;
}

int64_t PlanTableBytes(const RankLayout& layout, const MemoryLimits& limits) {
  const auto words = [](int64_t count) { return count * static_cast<int64_t>(sizeof(int32_t)); };
  const int64_t table = words(limits.BlocksOf(limits.context_length));
  const int64_t lists =
      words(limits.context_length + 2 * int64_t{kMaxLogitBiases} + int64_t{kMaxSuppressedIds});
  return limits.slot_count * (kSlotStateBytes + table + (layout.last_stage() ? lists : 0)) +
         limits.step_tokens * kRowStateBytes;
}

int64_t PlanLogitBytes(const ShapeSpec& shape, const RankLayout& layout,
                       const MemoryLimits& limits) {
  if (!layout.last_stage()) return 0;
  const int64_t vocabulary = shape.spec.vocabulary;
  const int64_t ranks = layout.tensor_parallel;
  const int64_t rows = limits.logit_rows();
  int64_t widest = 0;
  for (int tp_rank = 0; tp_rank < layout.tensor_parallel; ++tp_rank) {
    widest = std::max(widest, VocabularyPart(shape.spec, layout.tensor_parallel, tp_rank).size());
  }
  const int64_t own_rows = (rows + ranks - 1) / ranks;
  const int64_t whole_rows = ranks > 1 ? own_rows * vocabulary : 0;
  const int64_t answers = ranks > 1 ? ranks * limits.sampler_answer_bytes : 0;
  // A task, and its entry, for every row.
  const int64_t tasks =
      limits.on_gpu ? rows * (kSampleTaskBytes + static_cast<int64_t>(sizeof(int32_t))) : 0;
  return answers + tasks +
         (ranks * rows * widest + whole_rows) * static_cast<int64_t>(sizeof(float)) +
         rows * kTurnRowBytes + ranks * rows * kBestBytes + own_rows * kSampleTaskBytes +
         ranks * own_rows * kSampleAnswerBytes + limits.step_tokens * kWantedRowBytes;
}

int64_t PlanStepInputBytes(const MemoryLimits& limits) {
  const int64_t table = limits.BlocksOf(limits.context_length);
  return limits.step_tokens * kStepInputRowBytes +
         limits.slot_count * table * static_cast<int64_t>(sizeof(int32_t));
}

int64_t PlanPinnedInputBytes(const MemoryLimits& limits) {
  return 2 * PlanStepInputBytes(limits);
}

int64_t PlanDeviceLogitBytes(const RankLayout& layout, const MemoryLimits& limits) {
  if (!layout.last_stage()) return 0;
  return limits.logit_rows() * layout.vocabulary.size() * static_cast<int64_t>(sizeof(float)) +
         limits.sampler_device_bytes;
}

int64_t KvBlockBytes(const ModelSpec& spec, const RankLayout& layout, int64_t block_tokens,
                     DType kv_dtype) {
  const int64_t values = layout.kv_heads.size() * block_tokens * spec.head_dim;
  return 2 * layout.layers.size() * DTypeBytes(kv_dtype, values);
}

int64_t DecoderBuffers::padding() const {
  int64_t total =
      2 * DevicePadding(rope) + (slopes ? 2 : 1) * DevicePadding(slopes ? heads / 2 : heads);
  for (const int64_t piece : {normed, qkv, attended, gate_up, activated, branch, part, head_groups,
                              parts_done, picked, picked_rows}) {
    total += DevicePadding(piece);
  }
  return total;
}

int64_t LargestStagingBytes(const HeldWeights& held) {
  int64_t all = 0, largest = kStagingBytes;
  for (const int64_t bytes : held.vectors) all += bytes + DevicePadding(bytes);
  for (const HeldMatrix& matrix : held.matrices) {
    const int64_t bytes = matrix.bytes(/*on_gpu=*/true);
    all += bytes + DevicePadding(bytes);
    if (!CudaMatrixIsRows(matrix.dtype)) largest = std::max(largest, bytes + DevicePadding(bytes));
  }
  return std::min(all, largest);
}

int64_t MemoryPlan::KvPadding(int64_t blocks) const {
  return on_gpu ? DevicePadding(blocks * block_bytes) : 0;
}

int64_t MemoryPlan::weights() const {
  int64_t total = 0;
  for (const int64_t bytes : weight_bytes) total += bytes;
  return total;
}

std::string MemoryPlan::ToString() const {
  std::string peers;
  if (peer_bytes + link_bytes > 0) {
    peers = absl::StrCat(" + peer buffers ", MiB(peer_bytes + link_bytes));
  }
  if (padding() > 0) absl::StrAppend(&peers, " + padding ", MiB(padding()));
  std::string host;
  if (host_bytes > 0) {
    host = absl::StrCat(" on the device, and ", MiB(host_bytes), " of the host (while loading ",
                        MiB(staging_bytes), " more)");
  }
  return absl::StrCat("weights ", MiB(weights()), " + KV ", MiB(kv_bytes()), " + workspaces ",
                      MiB(workspace_bytes()), " + tables ", MiB(table_bytes), " + logits ",
                      MiB(logit_bytes), peers, " = ", MiB(total()), host);
}

MemoryPlan PlanRank(const ShapeSpec& shape, const RankLayout& layout, const MemoryLimits& limits) {
  MemoryPlan plan;
  const HeldWeights held = HeldBy(shape, layout);
  for (int kind = 0; kind < kWeightKinds; ++kind) {
    plan.weight_bytes[kind] = held.vector_bytes[kind];
  }
  for (const HeldMatrix& matrix : held.matrices) {
    plan.weight_bytes[static_cast<int>(matrix.kind)] += matrix.bytes(limits.on_gpu);
  }
  plan.block_bytes = KvBlockBytes(shape.spec, layout, limits.block_tokens, limits.kv_dtype);
  plan.block_count = limits.block_count;
  // The step loop pads a message's rows to whole shares of the stage's ranks.
  const int64_t residual = limits.step_tokens * shape.spec.hidden + layout.tensor_parallel;
  plan.decoder_bytes =
      PlanDecoderBuffers(shape, layout, limits).total() + limits.op_workspace_bytes;
  plan.residual_bytes = DTypeBytes(DType::kF32, residual);
  plan.table_bytes = PlanTableBytes(layout, limits);
  plan.logit_bytes = PlanLogitBytes(shape, layout, limits);
  plan.peer_bytes = limits.peer_bytes;
  plan.link_bytes = limits.link_bytes;
  if (!limits.on_gpu) return plan;
  plan.host_bytes =
      plan.table_bytes + plan.logit_bytes + plan.residual_bytes + PlanPinnedInputBytes(limits);
  if (layout.last_stage()) plan.host_bytes += limits.sampler_host_bytes;
  plan.table_bytes = PlanStepInputBytes(limits);
  plan.logit_bytes = PlanDeviceLogitBytes(layout, limits);
  plan.on_gpu = true;
  plan.padding_bytes = PaddingOf(held, PlanDecoderBuffers(shape, layout, limits), limits, plan);
  plan.staging_bytes = kStagingBuffers * LargestStagingBytes(held);
  return plan;
}

absl::StatusOr<std::vector<RankLayout>> GroupLayouts(const ModelSpec& spec, int tensor_parallel,
                                                     int pipeline_parallel) {
  std::vector<RankLayout> ranks;
  // The first call refuses what no rank can take.
  for (int rank = 0; rank == 0 || rank < tensor_parallel * pipeline_parallel; ++rank) {
    ASSIGN_OR_RETURN(RankLayout layout, MakeLayout(spec, tensor_parallel, pipeline_parallel, rank));
    ranks.push_back(std::move(layout));
  }
  return ranks;
}

absl::StatusOr<KvPlan> PlanKv(const KvRequest& request) {
  const auto blocks_of = [&](int64_t tokens) {
    return (tokens + request.block_tokens - 1) / request.block_tokens;
  };
  const bool kv_asked = request.block_count > 0 || request.kv_bytes > 0;
  const bool context_asked = request.context_length > 0;
  KvPlan plan;
  plan.context_length = context_asked ? request.context_length : request.model_context;
  const int64_t per_sequence = blocks_of(plan.context_length);
  if (request.block_count > 0) {
    plan.block_count = request.block_count;
  } else if (request.kv_bytes > 0) {
    plan.block_count = request.kv_bytes / request.block_bytes;
  } else {
    plan.block_count =
        std::min(request.slot_count * per_sequence, kDefaultKvBytes / request.block_bytes);
    plan.block_count = std::max(plan.block_count, context_asked ? per_sequence : 1);
  }
  if (plan.block_count < 1 || (kv_asked && context_asked && plan.block_count < per_sequence)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the KV cache holds ", plan.block_count, " blocks of ", request.block_tokens, " tokens (",
        request.block_bytes, " bytes each); one sequence of the full context of ",
        plan.context_length, " tokens takes ", per_sequence, " blocks, ",
        per_sequence * request.block_bytes, " bytes"));
  }
  if (plan.block_count > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("the KV cache has ", plan.block_count,
                                                   " blocks; the most is ",
                                                   std::numeric_limits<int32_t>::max()));
  }
  if (plan.block_count < per_sequence) {
    plan.context_length = plan.block_count * request.block_tokens;
    plan.shortened = absl::StrCat("the context served is ", plan.context_length,
                                  " tokens, not the model's ", request.model_context,
                                  ": the KV cache of ", plan.block_count * request.block_bytes,
                                  " bytes holds no more (one full "
                                  "context takes ",
                                  per_sequence * request.block_bytes, ")");
  }
  return plan;
}

int64_t LargestBlockBytes(const ModelSpec& spec, const std::vector<RankLayout>& ranks,
                          int64_t block_tokens, DType kv_dtype) {
  int64_t largest = 0;
  for (const RankLayout& layout : ranks) {
    largest = std::max(largest, KvBlockBytes(spec, layout, block_tokens, kv_dtype));
  }
  return largest;
}

int64_t LargestBlockCount(const std::vector<MemoryPlan>& ranks, int64_t budget) {
  int64_t count = std::numeric_limits<int32_t>::max();
  for (const MemoryPlan& plan : ranks) {
    int64_t left = budget - plan.fixed();
    // The KV takes whole steps of the alignment there.
    if (plan.on_gpu && left > 0) left -= left % kDevicePieceAlignment;
    count = std::min(count, left < 0 ? -1 : left / plan.block_bytes);
  }
  return count;
}

std::string Remedies(const MemoryPlan& plan, int64_t available) {
  constexpr int64_t kMostTimes = 64;
  const int64_t missing = plan.total() - available;
  std::vector<std::string> remedies;
  const int64_t for_kv = available - plan.fixed();
  if (plan.block_count > 0 && for_kv >= plan.block_bytes) {
    remedies.push_back(absl::StrCat("--kv-mib ", for_kv >> 20, " or less"));
    if (plan.on_gpu) remedies.emplace_back("a smaller --gpu-memory-fraction");
  }
  // Ranks share weights and KV; the rest stays about as it is.
  const int64_t shared = plan.weights() + plan.kv_bytes();
  for (int64_t times = 2; times <= kMostTimes; ++times) {
    if (shared - shared / times < missing) continue;
    remedies.push_back(absl::StrCat(times, " times as many ranks (--tp, --pp)"));
    break;
  }
  if (missing < plan.weights()) {
    const int64_t share = (plan.weights() - missing) * 100 / plan.weights();
    remedies.push_back(
        absl::StrCat("a --dtype that takes at most ", share, " % of the weights' bytes"));
  }
  if (remedies.empty()) return "no layout of this model would do; use more memory or fewer --slots";
  return absl::StrJoin(remedies, ", or ");
}

absl::Status CheckFits(const MemoryPlan& plan, int64_t available) {
  if (available == 0 || plan.reserved() <= available) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat("the rank needs ", plan.ToString(), ", and ",
                                                   MiB(available), " are available, ",
                                                   plan.reserved() - available, " bytes too few; ",
                                                   Remedies(plan, available + plan.link_bytes)));
}

}  // namespace pergola
