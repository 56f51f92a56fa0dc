#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/sample.h"
#include "kernels/sample_math.h"

namespace pergola {
namespace {

// Cuts the sorted list to the shortest prefix that reaches top_p of the total.
void KeepTopP(const SampleRow& row, std::vector<int32_t>* ids) {
  const double largest = row.logits[ids->front()];
  const double inverse = 1.0 / static_cast<double>(row.temperature);
  const auto weight = [&](int32_t id) {
    return SoftmaxWeight((static_cast<double>(row.logits[id]) - largest) * inverse);
  };
  std::vector<int32_t> by_id = *ids;
  std::sort(by_id.begin(), by_id.end());
  double lanes[8] = {};
  for (int32_t id : by_id) lanes[id % 8] += weight(id);
  const double wanted = static_cast<double>(row.top_p) * FoldEight(lanes);
  double sum = 0;
  for (size_t i = 0; i < ids->size(); ++i) {
    sum += weight((*ids)[i]);
    if (sum >= wanted) {
      ids->resize(i + 1);
      return;
    }
  }
}

}  // namespace

int32_t SampleRef(const SampleRow& row, int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocabulary; ++id) {
    const float logit = row.logits[id];
    if (std::isnan(logit) || (std::isinf(logit) && logit > 0)) return -1;
    if (std::isfinite(logit) && MaskAllows(row.mask, id)) ids.push_back(id);
  }
  if (ids.empty()) return -1;
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return row.logits[a] != row.logits[b] ? row.logits[a] > row.logits[b] : a < b;
  });
  if (row.temperature == 0) return ids.front();
  if (row.top_k > 0 && row.top_k < ids.size()) ids.resize(row.top_k);
  if (row.top_p < 1) KeepTopP(row, &ids);
  int32_t best_id = ids.front();
  double best = GumbelScore(row, row.logits[best_id], best_id);
  for (int32_t id : ids) {
    const double score = GumbelScore(row, row.logits[id], id);
    if (score > best || (score == best && id < best_id)) {
      best = score;
      best_id = id;
    }
  }
  return best_id;
}

}  // namespace pergola
