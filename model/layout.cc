#include "model/layout.h"

#include <algorithm>

#include "base/status.h"

namespace pergola {
namespace {

// A quantisation group: cuts on its multiples keep every group whole on one rank.
constexpr int64_t kCutUnit = 32;

// Part `index` of [0, total) dealt as evenly as possible: the first parts are one longer.
Range EvenPart(int64_t total, int64_t parts, int64_t index) {
  const int64_t share = total / parts;
  const int64_t longer = total % parts;
  const int64_t begin = index * share + std::min(index, longer);
  return {begin, begin + share + (index < longer ? 1 : 0)};
}

// The same with cuts on multiples of kCutUnit if every part then gets at least one unit; the tail
// goes to the last.
Range UnitPart(int64_t total, int64_t parts, int64_t index) {
  const int64_t units = total / kCutUnit;
  if (units < parts) return EvenPart(total, parts, index);
  Range part = EvenPart(units, parts, index);
  part.begin *= kCutUnit;
  part.end = index == parts - 1 ? total : part.end * kCutUnit;
  return part;
}

// Weights read per row of a step; a stand-in for bytes, since all layers share one dtype mix.
struct Costs {
  int64_t layer = 0;
  int64_t first = 0;
  int64_t last = 0;
};

Costs CostsOf(const ModelSpec& spec) {
  Costs costs;
  costs.layer = spec.hidden * (spec.head_dim * 2 * (spec.heads + spec.kv_heads) +
                               (spec.gated_mlp ? 3 : 2) * spec.ffn);
  costs.first = spec.hidden;
  costs.last = spec.hidden * spec.vocabulary;
  return costs;
}

// Layers per stage when the last stage has `last`. All layers cost the same, so the others share
// evenly; the first stage, which also embeds, is the last to get one more.
std::vector<int64_t> Deal(int64_t layers, int64_t stages, int64_t last) {
  std::vector<int64_t> counts;
  for (int64_t stage = 0; stage + 1 < stages; ++stage) {
    counts.push_back(EvenPart(layers - last, stages - 1, stages - 2 - stage).size());
  }
  counts.push_back(last);
  return counts;
}

int64_t Slowest(const std::vector<int64_t>& counts, const Costs& costs) {
  int64_t slowest = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    int64_t cost = counts[i] * costs.layer;
    if (i == 0) cost += costs.first;
    if (i + 1 == counts.size()) cost += costs.last;
    slowest = std::max(slowest, cost);
  }
  return slowest;
}

absl::Status CheckAtMost(const char* what, int64_t value, const char* limit_name, int64_t limit) {
  if (value >= 1 && value <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is ", value, "; this model allows 1 to ", limit, " (", limit_name, ")"));
}

}  // namespace

absl::StatusOr<std::vector<Range>> CutStages(const ModelSpec& spec, int pipeline_parallel) {
  RETURN_IF_ERROR(CheckAtMost("pipeline parallel", pipeline_parallel, "its layers", spec.layers));
  const Costs costs = CostsOf(spec);
  std::vector<int64_t> best = {spec.layers};
  if (pipeline_parallel > 1) {
    best = Deal(spec.layers, pipeline_parallel, 1);
    // The slowest stage's cost falls, then rises with the last stage's layers. On a tie more layers
    // in the last stage lighten the others.
    for (int64_t last = 2; last <= spec.layers - pipeline_parallel + 1; ++last) {
      std::vector<int64_t> counts = Deal(spec.layers, pipeline_parallel, last);
      if (Slowest(counts, costs) <= Slowest(best, costs)) best = std::move(counts);
    }
  }
  std::vector<Range> stages;
  int64_t begin = 0;
  for (const int64_t count : best) {
    stages.push_back({begin, begin + count});
    begin += count;
  }
  return stages;
}

Range VocabularyPart(const ModelSpec& spec, int tensor_parallel, int tp_rank) {
  return UnitPart(spec.vocabulary, tensor_parallel, tp_rank);
}

absl::StatusOr<RankLayout> MakeLayout(const ModelSpec& spec, int tensor_parallel,
                                      int pipeline_parallel, int world_rank) {
  RETURN_IF_ERROR(CheckAtMost("tensor parallel", tensor_parallel, "its heads", spec.heads));
  RETURN_IF_ERROR(CheckAtMost("tensor parallel", tensor_parallel, "its FFN size", spec.ffn));
  RETURN_IF_ERROR(
      CheckAtMost("tensor parallel", tensor_parallel, "its vocabulary", spec.vocabulary));
  ASSIGN_OR_RETURN(const std::vector<Range> stages, CutStages(spec, pipeline_parallel));
  if (spec.kv_heads < 1 || spec.heads % spec.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the model has ", spec.heads, " heads and ",
                                                   spec.kv_heads,
                                                   " KV heads; KV heads must divide heads"));
  }
  const int64_t ranks = static_cast<int64_t>(tensor_parallel) * pipeline_parallel;
  if (world_rank < 0 || world_rank >= ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", world_rank, " is outside 0 to ", ranks - 1, " (tensor parallel ",
                     tensor_parallel, " x pipeline parallel ", pipeline_parallel, ")"));
  }
  RankLayout layout;
  layout.world_rank = world_rank;
  layout.tensor_parallel = tensor_parallel;
  layout.pipeline_parallel = pipeline_parallel;
  layout.stage = world_rank / tensor_parallel;
  layout.tp_rank = world_rank % tensor_parallel;
  layout.layers = stages[layout.stage];
  layout.heads = EvenPart(spec.heads, tensor_parallel, layout.tp_rank);
  const int64_t heads_per_kv = spec.heads / spec.kv_heads;
  layout.kv_heads = {layout.heads.begin / heads_per_kv, (layout.heads.end - 1) / heads_per_kv + 1};
  for (int64_t head = layout.heads.begin; head < layout.heads.end; ++head) {
    layout.kv_of_head.push_back(static_cast<int32_t>(head / heads_per_kv - layout.kv_heads.begin));
  }
  layout.ffn = UnitPart(spec.ffn, tensor_parallel, layout.tp_rank);
  layout.vocabulary = VocabularyPart(spec, tensor_parallel, layout.tp_rank);
  layout.positions = EvenPart(spec.context_length, tensor_parallel, layout.tp_rank);
  return layout;
}

}  // namespace pergola
