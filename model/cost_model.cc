#include "model/cost_model.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "base/status.h"
#include "model/layout.h"
#include "model/memory_plan.h"

namespace pergola {
namespace {

// Memory in units of 10^9 bytes, as data sheets count; NVLink's stated sum of both directions
// halved. FLOP rates are dense; where a sheet states them "with sparsity", half of that. Networks:
// the DGX of that generation has one adapter per GPU, of 200 Gb/s (DGX A100 data sheet) or 400 Gb/s
// (DGX H100 and H200 data sheets).
constexpr GpuSpec kGpus[] = {
    // NVIDIA H100 data sheet, SXM: 80 GB, 3.35 TB/s, 1979 TFLOPS bf16 with sparsity, NVLink 900.
    {"h100", "H100 SXM 80 GB", 80'000'000'000, 3.35e12, 989.5e12, 450e9, 50e9},
    // NVIDIA H200 data sheet, SXM: 141 GB, 4.8 TB/s, 1979 TFLOPS bf16 with sparsity, NVLink 900.
    {"h200", "H200 SXM 141 GB", 141'000'000'000, 4.8e12, 989.5e12, 450e9, 50e9},
    // NVIDIA A100 data sheet, SXM: 40 GB, 1555 GB/s, 312 TFLOPS bf16, NVLink 600.
    {"a100-40g", "A100 SXM 40 GB", 40'000'000'000, 1.555e12, 312e12, 300e9, 25e9},
    // NVIDIA A100 data sheet, SXM: 80 GB, 2039 GB/s, 312 TFLOPS bf16, NVLink 600.
    {"a100-80g", "A100 SXM 80 GB", 80'000'000'000, 2.039e12, 312e12, 300e9, 25e9},
};

// What the driver keeps of each GPU for a process's context, code and cuBLAS workspace. A stated
// reserve: 1 GiB covers what nvidia-smi shows for an idle process (0.3 to 0.6 GiB) with a margin.
constexpr int64_t kContextBytes = int64_t{1} << 30;
// Buffers of one NCCL communicator: up to 32 channels, each with a receive buffer of 4 MiB
// (NCCL_BUFFSIZE's default) for Simple and as much again for LL and LL128, from two neighbours.
constexpr int64_t kCommunicatorBytes = int64_t{32} * 2 * 2 * (4 << 20);

// Latencies of NCCL's own tuning model (github.com/NVIDIA/nccl, src/graph/tuning.cc, commit
// 01afd20: baseLat and hwLat), in seconds: start of a ring with the low-latency protocol and with
// the simple one, and of each step over NVLink and, low-latency only, over the network.
constexpr double kRingStartLowLatency = 3.6e-6;
constexpr double kRingStartSimple = 8.4e-6;
constexpr double kNvlinkStepLowLatency = 0.47e-6;
constexpr double kNvlinkStepSimple = 3.4e-6;
constexpr double kNetworkStepLowLatency = 2.7e-6;
// The low-latency protocol sends a flag with every word and reaches a quarter of the bandwidth
// (same file: busBw *= 1/4 for an all-reduce).
constexpr double kLowLatencyShare = 0.25;

// Reads of a row of f32 logits by the sampler: largest value, sum of weights, choice.
constexpr int kLogitPasses = 3;

// Attention multiplies twice per head value and cached position: q.k and weight * v.
constexpr double kAttentionProducts = 2;

}  // namespace

absl::StatusOr<GpuSpec> FindGpu(const std::string& name) {
  for (const GpuSpec& gpu : kGpus) {
    if (name == gpu.name) return gpu;
  }
  return absl::NotFoundError(absl::StrCat("'", name, "' is no known GPU; known are ", GpuNames()));
}

std::string GpuNames() {
  return absl::StrJoin(kGpus, ", ",
                       [](std::string* out, const GpuSpec& gpu) { out->append(gpu.name); });
}

int64_t GpuReserveBytes(int tensor_parallel, int pipeline_parallel) {
  const int communicators = (tensor_parallel > 1 ? 1 : 0) + (pipeline_parallel > 1 ? 1 : 0);
  return kContextBytes + communicators * kCommunicatorBytes;
}

double AllReduceSeconds(const GpuSpec& gpu, int ranks, double bytes) {
  if (ranks == 1) return 0;
  const double others = ranks - 1;
  const double ring_bytes = 2 * others / ranks * bytes;
  const double small = kRingStartLowLatency + 2 * others * kNvlinkStepLowLatency +
                       ring_bytes / (kLowLatencyShare * gpu.nvlink_bandwidth);
  const double large =
      kRingStartSimple + 2 * others * kNvlinkStepSimple + ring_bytes / gpu.nvlink_bandwidth;
  // Every rank sends all its values to every other, with a flag beside each: one step.
  const double one_shot =
      kRingStartLowLatency + kNvlinkStepLowLatency + 2 * others * bytes / gpu.nvlink_bandwidth;
  return std::min({small, large, one_shot});
}

double HopSeconds(const GpuSpec& gpu, bool across_nodes, double bytes) {
  const double step = across_nodes ? kNetworkStepLowLatency : kNvlinkStepLowLatency;
  return kRingStartLowLatency + step +
         bytes / (across_nodes ? gpu.network_bandwidth : gpu.nvlink_bandwidth);
}

absl::StatusOr<CostModel> CostModel::Make(const ShapeSpec& shape, const Cluster& cluster,
                                          int tensor_parallel, int pipeline_parallel,
                                          DType kv_dtype) {
  if (tensor_parallel < 1 || cluster.gpus_per_node % tensor_parallel != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor parallel is ", tensor_parallel, "; it must divide the ",
                     cluster.gpus_per_node, " GPUs of a node, for a stage stays inside one"));
  }
  const int64_t gpus = int64_t{cluster.nodes} * cluster.gpus_per_node;
  if (pipeline_parallel < 1 || int64_t{tensor_parallel} * pipeline_parallel > gpus) {
    return absl::InvalidArgumentError(absl::StrCat("tensor parallel ", tensor_parallel,
                                                   " x pipeline parallel ", pipeline_parallel,
                                                   " is more than the ", gpus, " GPUs"));
  }
  ASSIGN_OR_RETURN(const std::vector<RankLayout> ranks,
                   GroupLayouts(shape.spec, tensor_parallel, pipeline_parallel));
  CostModel model;
  model.gpu_ = cluster.gpu;
  model.tensor_parallel_ = tensor_parallel;
  model.hidden_ = shape.spec.hidden;
  model.vocabulary_ = shape.spec.vocabulary;
  const bool f32 = shape.AllMatricesAreF32();
  model.activation_bytes_ = f32 ? 4 : 2;
  // TF32, the f32 product of tensor cores, has half the 16-bit rate on all of these data sheets.
  // Smaller weights are widened to 16 bits to be multiplied.
  model.flops_ = f32 ? cluster.gpu.flops_16bit / 2 : cluster.gpu.flops_16bit;
  model.stages_.resize(pipeline_parallel);
  for (const RankLayout& layout : ranks) {
    StageCost& stage = model.stages_[layout.stage];
    stage.layers = layout.layers.size();
    stage.last = layout.last_stage();
    const int stages_per_node = cluster.gpus_per_node / tensor_parallel;
    stage.next_is_remote = (layout.stage + 1) % stages_per_node == 0;
    RankCost rank;
    for (const HeldMatrix& matrix : HeldBy(shape, layout).matrices) {
      // An embedding that is the head too, or is in the last stage because it is.
      const bool head = layout.last_stage() && matrix.split == Split::kVocabularyRows &&
                        (matrix.kind == WeightKind::kLmHead || shape.spec.tied_embeddings);
      // Of the other tables only the rows of the step are read.
      if (matrix.layer < 0 && !head) continue;
      (head ? rank.head_bytes : rank.matrix_bytes) +=
          static_cast<double>(matrix.bytes(/*on_gpu=*/true));
      (head ? rank.head_values : rank.matrix_values) +=
          static_cast<double>(matrix.rows) * static_cast<double>(matrix.columns);
    }
    rank.kv_token_bytes = static_cast<double>(KvBlockBytes(shape.spec, layout, 1, kv_dtype));
    rank.attention_values =
        kAttentionProducts *
        static_cast<double>(layout.heads.size() * shape.spec.head_dim * layout.layers.size());
    stage.ranks.push_back(rank);
  }
  return model;
}

StageSeconds CostModel::Stage(int stage, const StageWork& work) const {
  const StageCost& cost = stages_[stage];
  const auto rows = static_cast<double>(work.rows);
  const auto logit_rows = static_cast<double>(work.logit_rows);
  const auto kv_tokens = static_cast<double>(work.kv_tokens);
  const auto attended = static_cast<double>(work.attended);
  const auto roofline = [&](double bytes, double products) {
    return std::max(bytes / gpu_.memory_bandwidth, 2 * products / flops_);
  };
  StageSeconds slowest;
  for (const RankCost& rank : cost.ranks) {
    StageSeconds seconds;
    seconds.matrices = roofline(rank.matrix_bytes, rank.matrix_values * rows);
    if (cost.last && work.logit_rows > 0) {
      seconds.matrices += roofline(rank.head_bytes, rank.head_values * logit_rows);
    }
    seconds.kv = roofline(rank.kv_token_bytes * kv_tokens, rank.attention_values * attended);
    if (seconds.total() > slowest.total()) slowest = seconds;
  }
  slowest.all_reduce = 2 * static_cast<double>(cost.layers) *
                       AllReduceSeconds(gpu_, tensor_parallel_,
                                        rows * static_cast<double>(hidden_) * activation_bytes_);
  if (cost.last && work.logit_rows > 0) {
    const double row_bytes = static_cast<double>(vocabulary_) * sizeof(float);
    // Rows are dealt whole: the slowest rank has the rounded-up share.
    const int64_t own_rows = (work.logit_rows + tensor_parallel_ - 1) / tensor_parallel_;
    slowest.sampling =
        kLogitPasses * static_cast<double>(own_rows) * row_bytes / gpu_.memory_bandwidth;
    if (tensor_parallel_ > 1) {
      // The slices of a row meet on the rank that samples it.
      slowest.sampling += HopSeconds(gpu_, false, own_rows * row_bytes);
    }
  }
  return slowest;
}

double CostModel::Hop(int stage, int64_t rows) const {
  const StageCost& cost = stages_[stage];
  if (cost.last) {
    bool remote = false;
    for (const StageCost& other : stages_) remote = remote || (!other.last && other.next_is_remote);
    return stages() == 1 ? 0 : HopSeconds(gpu_, remote, static_cast<double>(rows) * 4);
  }
  const double bytes = static_cast<double>(rows * hidden_) * activation_bytes_ / tensor_parallel_;
  double seconds = HopSeconds(gpu_, cost.next_is_remote, bytes);
  // Every rank sends its share; the receivers put the rows together.
  if (tensor_parallel_ > 1) seconds += HopSeconds(gpu_, false, bytes * (tensor_parallel_ - 1));
  return seconds;
}

DecodeCost CostModel::DecodeIn(int64_t micro_batches, int64_t batch, int64_t length) const {
  // The largest micro-batch sets the pace.
  const int64_t rows = (batch + micro_batches - 1) / micro_batches;
  DecodeCost cost;
  cost.batch = batch;
  cost.micro_batches = micro_batches;
  double way = 0;
  double busy = 0;
  for (int stage = 0; stage < stages(); ++stage) {
    const StageSeconds seconds = Stage(stage, {rows, rows * length, rows * length, rows});
    if (seconds.total() > cost.slowest.total()) cost.slowest = seconds;
    busy += seconds.total();
    const double hop = Hop(stage, rows);
    cost.hop_seconds += hop;
    way += seconds.total() + hop;
  }
  const auto batches = static_cast<double>(micro_batches);
  cost.step_seconds = std::max(way, batches * cost.slowest.total());
  cost.bubble = 1 - batches * busy / (static_cast<double>(stages()) * cost.step_seconds);
  return cost;
}

DecodeCost CostModel::Decode(int64_t batch, int64_t length) const {
  DecodeCost best = DecodeIn(1, batch, length);
  for (int64_t count = 2; count <= std::min<int64_t>(batch, int64_t{2} * stages()); ++count) {
    if (stages() == 1) break;
    const DecodeCost cost = DecodeIn(count, batch, length);
    if (cost.step_seconds < best.step_seconds) best = cost;
  }
  return best;
}

PublishedRun FindPublishedRun(const std::string& model, const Cluster& cluster) {
  const bool dgx = cluster.nodes == 1 && cluster.gpus_per_node == 8;
  if (model != "bloom-176b" || !dgx || std::string(cluster.gpu.name) != "a100-80g") return {};
  // A few tokens of prompt grown to 100: 50 cached tokens on average.
  return {"DeepSpeed-Inference, fp16",
          "huggingface.co/blog/bloom-inference-pytorch-scripts, 2022-09-16",
          50,
          {{1, 44.02}, {8, 5.70}, {16, 3.01}, {32, 1.68}, {64, 1.00}, {128, 0.69}}};
}

}  // namespace pergola
