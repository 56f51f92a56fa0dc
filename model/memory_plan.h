// What every rank of a group allocates, planned before it is allocated: pure arithmetic over
// shapes, the same for a worker that loads, for admission (the blocks and the context of Hello) and
// for `pergola plan`. What is printed adds up to what is allocated (DESIGN I7).
//
// Not counted: code, stacks, the thread pool's scratch (2 MiB a thread), on the last stage the
// scratch of sampling (a thread's is SampleWorkspaceBytes of kernels/sample.h), and on the CPU the
// stage's shared region (half a MiB per rank, twice).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/dtype.h"
#include "model/layout.h"
#include "model/shape_spec.h"

namespace pergola {

// What SlotTable keeps of a slot beside its block table.
inline constexpr int64_t kSlotStateBytes = 124;
// What a step's row has in the slot table: its position, its place in the KV and its table.
inline constexpr int64_t kRowStateBytes = 16;
// What a step sends a GPU about each of its rows.
inline constexpr int64_t kStepInputRowBytes = 40;
// What the token sampler keeps: of each row of a step; of each row whose logits are held, and again
// for each rank of the stage; of each row that falls to the rank itself; of each row's answer.
inline constexpr int64_t kWantedRowBytes = 48;
inline constexpr int64_t kTurnRowBytes = 16;
inline constexpr int64_t kBestBytes = 8;
inline constexpr int64_t kSampleTaskBytes = 520;
inline constexpr int64_t kSampleAnswerBytes = 344;

// Bounds that size everything but the weights.
struct MemoryLimits {
  int64_t slot_count = 64;
  int64_t block_tokens = 32;
  int64_t step_tokens = 512;   // most rows of a step
  int64_t context_length = 0;  // positions that are served
  int64_t block_count = 0;
  DType kv_dtype = DType::kF16;
  DType activation_dtype = DType::kF32;  // of workspaces; residual stream and logits are f32
  // On a GPU the block tables and slot state stay with the host, and so do the gathered logits; the
  // device has copies of what it reads.
  bool on_gpu = false;
  int64_t op_workspace_bytes = 0;  // scratch of a GPU's ops
  int64_t peer_bytes = 0;          // what the device and its communicator keep
  int64_t link_bytes = 0;          // what links among GPUs took before the plan was made
  // Of a GPU's last stage: what choosing tokens there takes of the device and of the host, and the
  // most that a rank of the stage tells the others.
  int64_t sampler_device_bytes = 0, sampler_host_bytes = 0, sampler_answer_bytes = 0;

  // Rows whose logits are held at once: one per slot, and for few slots enough that a prompt's
  // logits (tests, scoring) do not go one by one.
  int64_t logit_rows() const;
  // Blocks that a sequence of `tokens` takes.
  int64_t BlocksOf(int64_t tokens) const { return (tokens + block_tokens - 1) / block_tokens; }
};

// The decoder's buffers in bytes, by member of worker/model/decoder.h.
struct DecoderBuffers {
  int64_t rope = 0;  // of cosine, and again of sine; of local and of global layers
  int64_t normed = 0, qkv = 0, attended = 0, gate_up = 0, activated = 0, branch = 0;
  int64_t part = 0;   // outputs of a projection that mixes dtypes
  int64_t heads = 0;  // kv_of_head, and again the slopes of ALiBi where `slopes` says so
  bool slopes = false;
  // Of a GPU: which heads read one KV head together, and per row how many of its parts are done.
  int64_t head_groups = 0, parts_done = 0;
  // Rows that need logits, and which they are; last stage only.
  int64_t picked = 0, picked_rows = 0;
  // What lies between them on a GPU, where each is a piece (model/device_piece.h).
  int64_t padding() const;
  int64_t total() const {
    return 2 * rope + normed + qkv + attended + gate_up + activated + branch + part + heads +
           head_groups + parts_done + picked + picked_rows;
  }
};
DecoderBuffers PlanDecoderBuffers(const ShapeSpec& shape, const RankLayout& layout,
                                  const MemoryLimits& limits);

// Block tables and slot state; in the last stage the slots' token histories, biases and suppressed
// ids too.
int64_t PlanTableBytes(const RankLayout& layout, const MemoryLimits& limits);

// On a GPU: the copies of a step's inputs and of the block tables, and what goes there from pinned
// memory, in turn; the logits of a turn of rows, and what it takes to choose tokens of them.
int64_t PlanStepInputBytes(const MemoryLimits& limits);
int64_t PlanPinnedInputBytes(const MemoryLimits& limits);
int64_t PlanDeviceLogitBytes(const RankLayout& layout, const MemoryLimits& limits);

// The sampler's buffers, of a rank of the last stage: the gathered logits, the rank's own rows put
// together, and the choices and log-probabilities that are exchanged.
int64_t PlanLogitBytes(const ShapeSpec& shape, const RankLayout& layout,
                       const MemoryLimits& limits);

// K and V of one block in all layers of the rank.
int64_t KvBlockBytes(const ModelSpec& spec, const RankLayout& layout, int64_t block_tokens,
                     DType kv_dtype);

// One rank's memory.
struct MemoryPlan {
  std::array<int64_t, kWeightKinds> weight_bytes = {};  // by WeightKind
  int64_t block_bytes = 0;                              // of one KV block
  int64_t block_count = 0;
  int64_t decoder_bytes = 0;   // DecoderBuffers
  int64_t residual_bytes = 0;  // the step loop's rows: what one stage hands to the next
  int64_t table_bytes = 0;
  int64_t logit_bytes = 0;
  int64_t peer_bytes = 0;
  int64_t link_bytes = 0;
  // On a GPU all of this but link_bytes is one allocation, cut into pieces: the bytes between them,
  // without what follows the KV.
  bool on_gpu = false;
  int64_t padding_bytes = 0;
  // Of a GPU's rank only: what it keeps in the host's memory, and at most what it has there beside
  // it while its weights are uploaded; not part of any sum.
  int64_t host_bytes = 0;
  int64_t staging_bytes = 0;

  int64_t weights() const;
  int64_t workspace_bytes() const { return decoder_bytes + residual_bytes; }
  int64_t kv_bytes() const { return block_count * block_bytes; }
  // All padding.
  int64_t padding() const { return padding_bytes + KvPadding(block_count); }
  int64_t KvPadding(int64_t blocks) const;
  int64_t total() const { return fixed() + kv_bytes() + KvPadding(block_count); }
  // What is left to be allocated where a plan is made.
  int64_t reserved() const { return total() - link_bytes; }
  // Everything but the KV and its padding.
  int64_t fixed() const {
    return weights() + workspace_bytes() + table_bytes + logit_bytes + peer_bytes + link_bytes +
           padding_bytes;
  }
  // "weights 95.1 MiB + KV 720.0 MiB + workspaces 10.2 MiB + tables 0.1 MiB + logits 12.0 MiB =
  // 837.4 MiB"; peer buffers and padding are named where there are any, and a GPU's host memory
  // after the sum.
  std::string ToString() const;
};

MemoryPlan PlanRank(const ShapeSpec& shape, const RankLayout& layout, const MemoryLimits& limits);

// The layouts of all ranks; MakeLayout's errors.
absl::StatusOr<std::vector<RankLayout>> GroupLayouts(const ModelSpec& spec, int tensor_parallel,
                                                     int pipeline_parallel);

// How many KV blocks, and what context follows from them.
struct KvRequest {
  int64_t slot_count = 0;
  int64_t block_tokens = 0;
  int64_t block_bytes = 0;     // of the rank whose block is largest
  int64_t model_context = 0;   // what the model was made for
  int64_t context_length = 0;  // asked for; 0: the model's, or as much as the KV holds
  int64_t kv_bytes = 0;        // asked for per rank; 0: what all slots can use, at most 1 GiB, but
                               // at least one sequence of an asked context
  int64_t block_count = 0;     // asked for instead of kv_bytes; 0: from those
};
struct KvPlan {
  int64_t block_count = 0;
  int64_t context_length = 0;
  // One line if the context is shorter than the model's because the KV holds no more; else empty.
  std::string shortened;
};
// INVALID_ARGUMENT with the numbers if the context asked for does not fit the KV asked for, if not
// even one block does, or if there are more blocks than an int32 counts.
absl::StatusOr<KvPlan> PlanKv(const KvRequest& request);
// The block of the rank whose block is largest: its KV bounds the whole group's, so that every rank
// comes to the same number by itself.
int64_t LargestBlockBytes(const ModelSpec& spec, const std::vector<RankLayout>& ranks,
                          int64_t block_tokens, DType kv_dtype);

// The KV blocks that fit beside everything else into `budget` bytes on every rank; negative if the
// rest alone does not fit. Blocks of the plans given are ignored.
int64_t LargestBlockCount(const std::vector<MemoryPlan>& ranks, int64_t budget);

// Host memory through which the weights of `held` go to a GPU, three buffers of this many bytes: a
// layer, or what of it is at most kStagingBytes, or a matrix that can only be copied whole. At most
// what all weights take.
inline constexpr int64_t kStagingBytes = int64_t{128} << 20;
inline constexpr int kStagingBuffers = 3;
int64_t LargestStagingBytes(const HeldWeights& held);

// What would let the rank's plan fit into `available` bytes, each by itself: "--kv-mib 12 or less,
// or 2 times as many ranks (--tp, --pp), or ...".
std::string Remedies(const MemoryPlan& plan, int64_t available);

// RESOURCE_EXHAUSTED with the plan, the missing bytes and what would help if it takes more than
// `available` bytes (0: unknown, never refused).
absl::Status CheckFits(const MemoryPlan& plan, int64_t available);

}  // namespace pergola
