#include "kernels/attention_work.h"

#include <algorithm>

#include "base/check.h"

namespace pergola {

void PlanAttention(const int32_t* positions, const int32_t* table_of_row, int64_t rows,
                   AttentionPlan* plan) {
  plan->prefill_tiles.clear();
  plan->decode_rows.clear();
  plan->longest_prompt = plan->longest_context = 0;
  for (int64_t row = 0; row < rows;) {
    int64_t end = row + 1;
    while (end < rows && table_of_row[end] == table_of_row[row] &&
           positions[end] == positions[end - 1] + 1) {
      ++end;
    }
    // A run that begins at -1 has one row of padding before position 0.
    if (positions[row] < 0) end = row + 1;
    if (positions[row] >= 0 && end - row <= kDecodeRunRows) {
      plan->longest_context = std::max<int64_t>(plan->longest_context, positions[end - 1] + 1);
      for (int64_t r = row; r < end; ++r) plan->decode_rows.push_back(static_cast<int32_t>(r));
    } else if (positions[row] >= 0) {
      plan->longest_prompt = std::max<int64_t>(plan->longest_prompt, positions[end - 1] + 1);
      for (int64_t r = row; r < end; r += kAttentionTileRows) {
        plan->prefill_tiles.push_back(static_cast<int32_t>(r));
        plan->prefill_tiles.push_back(static_cast<int32_t>(std::min(kAttentionTileRows, end - r)));
      }
    }
    row = end;
  }
}

std::vector<int32_t> PlanHeadGroups(const int32_t* kv_of_head, int64_t heads) {
  std::vector<int32_t> groups;
  for (int64_t head = 0; head < heads;) {
    int64_t end = head + 1;
    while (end < heads && kv_of_head[end] == kv_of_head[head]) ++end;
    const int64_t parts = (end - head + kAttentionGroupHeads - 1) / kAttentionGroupHeads;
    for (int64_t left = parts; left > 0; --left) {
      const int64_t count = (end - head + left - 1) / left;
      groups.push_back(static_cast<int32_t>(head));
      groups.push_back(static_cast<int32_t>(count));
      head += count;
    }
  }
  return groups;
}

int64_t LargestHeadGroup(const std::vector<int32_t>& groups) {
  PERGOLA_CHECK(groups.size() % 2 == 0);
  int64_t largest = 0;
  for (size_t i = 1; i < groups.size(); i += 2) largest = std::max<int64_t>(largest, groups[i]);
  return largest;
}

namespace {

// Blocks that run at once.
int64_t Capacity(int multiprocessors) {
  return int64_t{2} * multiprocessors;
}

}  // namespace

int64_t LargestDecodeParts(int multiprocessors) {
  return 4 * Capacity(multiprocessors);
}

int64_t LargestPrefillParts(int multiprocessors) {
  return Capacity(multiprocessors);
}

int64_t PrefillParts(int multiprocessors, int64_t units, int64_t tiles) {
  const int64_t most =
      std::min({kMaxPrefillParts, tiles / kMinPrefillPartTiles,
                LargestPrefillParts(multiprocessors) / std::max<int64_t>(units, 1)});
  return std::max<int64_t>(most, 1);
}

int64_t DecodeParts(int multiprocessors, int64_t units, int64_t tiles) {
  if (units <= 0 || tiles <= 0) return 1;
  const int64_t most = std::min({kMaxDecodeParts, (tiles + kMinPartTiles - 1) / kMinPartTiles,
                                 LargestDecodeParts(multiprocessors) / units});
  const int64_t capacity = Capacity(multiprocessors);
  // The share of block places in use over all waves.
  const auto use = [&](int64_t parts) {
    const int64_t waves = (units * parts + capacity - 1) / capacity;
    return static_cast<double>(units * parts) / static_cast<double>(waves * capacity);
  };
  double best = 0;
  for (int64_t parts = 1; parts <= most; ++parts) best = std::max(best, use(parts));
  // More parts cost more to add up: the fewest that are nearly as good.
  for (int64_t parts = 1; parts < most; ++parts) {
    if (use(parts) >= 0.85 * best) return parts;
  }
  return std::max<int64_t>(most, 1);
}

}  // namespace pergola
