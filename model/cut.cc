#include "model/cut.h"

#include "base/check.h"

namespace pergola {

Cut CutOf(Split split, const std::vector<int64_t>& shape, int64_t head_dim,
          const RankLayout& layout) {
  Cut cut;
  cut.rows = Range{0, shape[0]};
  cut.columns = Range{0, shape.size() > 1 ? shape[1] : 1};
  const int64_t head = head_dim;
  switch (split) {
    case Split::kReplicated:
    case Split::kFirstRank:
      break;
    case Split::kQueryHeadRows:
      cut.rows = Range{layout.heads.begin * head, layout.heads.end * head};
      break;
    case Split::kKvHeadRows:
      cut.rows = Range{layout.kv_heads.begin * head, layout.kv_heads.end * head};
      break;
    case Split::kQueryHeadColumns:
      cut.columns = Range{layout.heads.begin * head, layout.heads.end * head};
      break;
    case Split::kFfnRows:
      cut.rows = layout.ffn;
      break;
    case Split::kFfnColumns:
      cut.columns = layout.ffn;
      break;
    case Split::kVocabularyRows:
      cut.rows = layout.vocabulary;
      break;
    case Split::kPositionRows:
      cut.rows = layout.positions;
      break;
  }
  return cut;
}

Cut CutOf(const WeightBinding& binding, const ModelSpec& spec, const RankLayout& layout) {
  return CutOf(SplitOf(binding.role), binding.shape, spec.head_dim, layout);
}

bool Holds(WeightPlace place, Split split, int64_t layer, const RankLayout& layout) {
  if (split == Split::kFirstRank && layout.tp_rank != 0) return false;
  switch (place) {
    case WeightPlace::kFirstStage:
      return layout.first_stage();
    case WeightPlace::kLastStage:
      return layout.last_stage();
    case WeightPlace::kBothEnds:
      return layout.first_stage() || layout.last_stage();
    case WeightPlace::kLayer:
      return layer >= layout.layers.begin && layer < layout.layers.end;
  }
  PERGOLA_CHECK(false);
}

bool Holds(const WeightBinding& binding, const ModelSpec& spec, const RankLayout& layout) {
  return Holds(PlaceOf(spec, binding.role), SplitOf(binding.role), binding.layer, layout);
}

}  // namespace pergola
