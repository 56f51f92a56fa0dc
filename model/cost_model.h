// How long a step takes on a cluster of GPUs: pure formulas over shapes and data-sheet numbers, a
// floor that no implementation on these machines passes, not a measurement. It ranks layouts for
// `pergola plan`, says what share of the floor a measured number reaches, and times the simulation.
//
//   matrix   max(weight bytes / memory bandwidth, 2 * rows * outputs * inputs / FLOP rate): the
//            roofline (Williams, Waterman, Patterson, CACM 52(4), 2009)
//   KV       bytes of the cached keys and values / memory bandwidth
//   reduce   two all-reduces a layer of rows * hidden activations (Shoeybi et al., Megatron-LM,
//            arXiv:1909.08053, section 3)
//   hop      rows * hidden activations from stage to stage, a share of them by every rank
//   bubble   the share of time a stage waits: with m micro-batches of equal cost over p stages a
//            token takes max(m * slowest stage, one way through all stages)
//
// Left out, so the floor stays one: kernel launches, activations' own traffic, the plan's way.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/dtype.h"
#include "model/shape_spec.h"

namespace pergola {

// One GPU and its links, as its maker's data sheet states them.
struct GpuSpec {
  const char* name;
  const char* title;
  int64_t memory_bytes;
  double memory_bandwidth;   // bytes/s
  double flops_16bit;        // dense bf16 or f16, 1/s
  double nvlink_bandwidth;   // bytes/s, one direction, of all links together
  double network_bandwidth;  // bytes/s, one direction, of the GPU's own adapter
};
// NOT_FOUND naming the known ones.
absl::StatusOr<GpuSpec> FindGpu(const std::string& name);
// "h100, h200, a100-40g, a100-80g".
std::string GpuNames();
// What a GPU's memory holds beside everything planned: the CUDA context and, with more than one
// rank, the communicator's buffers.
int64_t GpuReserveBytes(int tensor_parallel, int pipeline_parallel);

struct Cluster {
  GpuSpec gpu;
  int nodes = 1;
  int gpus_per_node = 1;
};

// Seconds of one all-reduce of `bytes` over `ranks` GPUs of a node: the best of a ring for small
// and one for large messages, and of everyone reading everyone.
double AllReduceSeconds(const GpuSpec& gpu, int ranks, double bytes);
// Seconds of one hop of `bytes` per rank from a stage to the next.
double HopSeconds(const GpuSpec& gpu, bool across_nodes, double bytes);

// What a stage does for one micro-batch.
struct StageWork {
  int64_t rows = 0;        // token rows
  int64_t kv_tokens = 0;   // cached positions read, once per sequence (a chunk's rows share them)
  int64_t attended = 0;    // pairs of a row and a position; as many for plain decodes
  int64_t logit_rows = 0;  // rows that need a token, last stage only
};
struct StageSeconds {
  double matrices = 0, kv = 0, all_reduce = 0, sampling = 0;
  double total() const { return matrices + kv + all_reduce + sampling; }
};

// A decode step: every sequence of the batch gets one token.
struct DecodeCost {
  int64_t batch = 0;
  int64_t micro_batches = 1;
  StageSeconds slowest;  // of the slowest stage and one micro-batch
  double hop_seconds = 0;
  double step_seconds = 0;  // between two tokens of one sequence
  double bubble = 0;        // share of the step that the average stage waits
  double token_seconds() const { return step_seconds / static_cast<double>(batch); }
};

class CostModel {
 public:
  // INVALID_ARGUMENT if the layout does not fit the model or the cluster: tensor parallel must stay
  // inside a node and divide its GPUs.
  static absl::StatusOr<CostModel> Make(const ShapeSpec& shape, const Cluster& cluster,
                                        int tensor_parallel, int pipeline_parallel, DType kv_dtype);

  int stages() const { return static_cast<int>(stages_.size()); }
  // Of the slowest rank of a stage.
  StageSeconds Stage(int stage, const StageWork& work) const;
  // From `stage` to the next one; from the last one, the ids' way back to the first.
  double Hop(int stage, int64_t rows) const;
  // Of `batch` sequences that have `length` cached tokens each, with the number of micro-batches
  // (at most twice the stages) that takes least time.
  DecodeCost Decode(int64_t batch, int64_t length) const;

 private:
  struct RankCost {
    double matrix_bytes = 0;  // of the layers, read once a step
    double matrix_values = 0;
    double head_bytes = 0;  // of the LM head
    double head_values = 0;
    double kv_token_bytes = 0;    // of one cached position in all layers of the rank
    double attention_values = 0;  // multiply-adds per row and cached position
  };
  struct StageCost {
    std::vector<RankCost> ranks;
    int64_t layers = 0;
    bool last = false;
    bool next_is_remote = false;  // the next stage is on another node
  };
  DecodeCost DecodeIn(int64_t micro_batches, int64_t batch, int64_t length) const;

  GpuSpec gpu_ = {};
  int tensor_parallel_ = 1;
  int64_t hidden_ = 0;
  int64_t vocabulary_ = 0;
  double activation_bytes_ = 2;
  double flops_ = 0;
  std::vector<StageCost> stages_;
};

// A published measurement to hold the floor against.
struct PublishedTime {
  int64_t batch;
  double token_ms;  // step time / batch
};
struct PublishedRun {
  const char* what;
  const char* source;
  int64_t length;  // cached tokens per sequence the floor is computed at
  std::vector<PublishedTime> times;
};
// The published run of this model on this cluster; empty times if none is known.
PublishedRun FindPublishedRun(const std::string& model, const Cluster& cluster);

}  // namespace pergola
