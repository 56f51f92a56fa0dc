#include "model/cut.h"

namespace pergola {

Cut CutOf(Split split, const std::vector<int64_t>& shape, int64_t head_dim,
          const RankLayout& layout) {
  Cut cut;
  cut.rows = Range{0, shape[0]};
  cut.columns = Range{0, shape.size() > 1 ? shape[1] : 1};
  const int64_t head = head_dim;
  switch (split) {
    case Split::kReplicated:
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
  }
  return cut;
}

Cut CutOf(const WeightBinding& binding, const ModelSpec& spec, const RankLayout& layout) {
  return CutOf(SplitOf(binding.role), binding.shape, spec.head_dim, layout);
}

bool Holds(const WeightBinding& binding, const ModelSpec& spec, const RankLayout& layout) {
  switch (binding.role) {
    case Role::kTokenEmbedding:
      return layout.first_stage() || (layout.last_stage() && spec.tied_embeddings);
    case Role::kFinalNorm:
      return layout.last_stage();
    case Role::kLmHead:
      return layout.last_stage() && !spec.tied_embeddings;
    case Role::kAttentionOutputBias:
    case Role::kDownBias:
      if (layout.tp_rank != 0) return false;
      break;
    default:
      break;
  }
  return binding.layer >= layout.layers.begin && binding.layer < layout.layers.end;
}

}  // namespace pergola
