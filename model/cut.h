// Which rows and columns of a weight a rank holds: SplitOf(role) applied to the rank's layout.
#pragma once

#include <cstdint>
#include <vector>

#include "model/layout.h"
#include "model/model_spec.h"

namespace pergola {

struct Cut {
  Range rows;     // outputs (or elements of a vector)
  Range columns;  // inputs; [0, 1) for a vector
};

// What this rank holds of a weight of `shape`, [rows, columns] or [rows].
Cut CutOf(Split split, const std::vector<int64_t>& shape, int64_t head_dim,
          const RankLayout& layout);
Cut CutOf(const WeightBinding& binding, const ModelSpec& spec, const RankLayout& layout);

// Whether this rank needs a weight at all: its layers, the embedding in the first stage, the final
// norm and the LM head (or the tied embedding) in the last; a row-parallel bias belongs to tp_rank
// 0 alone, so it is added once. `layer` is read for WeightPlace::kLayer only.
bool Holds(WeightPlace place, Split split, int64_t layer, const RankLayout& layout);
bool Holds(const WeightBinding& binding, const ModelSpec& spec, const RankLayout& layout);

}  // namespace pergola
