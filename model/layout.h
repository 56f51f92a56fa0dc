// World rank -> (stage, tp_rank, layer range, head range): the only place with rank arithmetic.
// World rank = stage * tensor_parallel + tp_rank, so a stage's ranks are consecutive and mpirun
// fills a node with whole stages.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/model_spec.h"

namespace pergola {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// What one rank holds.
struct RankLayout {
  int world_rank = 0;
  int tensor_parallel = 1;    // ranks per stage
  int pipeline_parallel = 1;  // stages
  int stage = 0;
  int tp_rank = 0;
  Range layers;
  Range heads;     // global query heads
  Range kv_heads;  // global KV heads this rank needs; ranges of two ranks overlap where a KV head
                   // is shared
  std::vector<int32_t> kv_of_head;  // [heads.size()]: local KV head of each local query head
  Range ffn;  // rows of gate and up, columns of down; cuts on multiples of 32 unless ffn is too
              // small for that
  Range vocabulary;  // rows of embedding and LM head
  Range positions;   // rows of a learned position table

  bool first_stage() const { return stage == 0; }
  bool last_stage() const { return stage == pipeline_parallel - 1; }
  bool leader() const { return tp_rank == 0; }
  int RankOf(int at_stage, int at_tp_rank) const { return at_stage * tensor_parallel + at_tp_rank; }
};

// Stages are cut by cost (layer = its weight bytes; first stage + embedding row cost, last stage +
// LM head), each at least one layer. INVALID_ARGUMENT naming value and limit if TP exceeds heads or
// vocabulary or ffn, PP exceeds layers, or rank is outside TP * PP.
absl::StatusOr<RankLayout> MakeLayout(const ModelSpec& spec, int tensor_parallel,
                                      int pipeline_parallel, int world_rank);
// The vocabulary slice of a tp_rank.
Range VocabularyPart(const ModelSpec& spec, int tensor_parallel, int tp_rank);
// The layer ranges of all stages.
absl::StatusOr<std::vector<Range>> CutStages(const ModelSpec& spec, int pipeline_parallel);

}  // namespace pergola
