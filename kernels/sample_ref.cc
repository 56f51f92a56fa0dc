#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <vector>

#include "kernels/sample.h"
#include "kernels/sample_math.h"

namespace pergola {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

bool Valid(const float* logits, int64_t vocabulary) {
  for (int64_t id = 0; id < vocabulary; ++id) {
    if (std::isnan(logits[id]) || (std::isinf(logits[id]) && logits[id] > 0)) return false;
  }
  return true;
}

// Whether `id` after the history would complete an n-gram that is in it.
bool CompletesNgram(const SampleRow& row, int32_t id) {
  const int64_t n = row.no_repeat_ngram_size;
  if (n == 0 || row.history_count < n) return false;
  const int32_t* end = row.history + row.history_count;
  for (int64_t at = 0; at + n <= row.history_count; ++at) {
    const int32_t* gram = row.history + at;
    if (gram[n - 1] == id && std::equal(gram, gram + n - 1, end - (n - 1))) return true;
  }
  return false;
}

bool Allowed(const SampleRow& row, int32_t id) {
  if (!MaskAllows(row.mask, id)) return false;
  if (row.mask_ids == nullptr) return true;
  return std::count(row.mask_ids, row.mask_ids + row.mask_id_count, id) > 0;
}

// Steps 1 to 6.
std::vector<float> Process(const SampleRow& row, int64_t vocabulary) {
  std::vector<float> logits(row.logits, row.logits + vocabulary);
  for (int64_t i = 0; i < row.bias_count; ++i) {
    float& logit = logits[row.bias_ids[i]];
    logit = AddBias(logit, row.biases[i]);
  }
  std::map<int32_t, int64_t> new_counts;  // of every id in the history
  if (row.looks_back()) {
    for (int64_t i = 0; i < row.history_count; ++i) {
      new_counts[row.history[i]] += i >= row.prompt_tokens ? 1 : 0;
    }
  }
  for (const auto& [id, count] : new_counts) {
    if (id < 0 || id >= vocabulary) continue;
    logits[id] = PenaliseRepetition(logits[id], row.repetition_penalty);
    logits[id] = PenaliseCount(logits[id], count, row);
    if (CompletesNgram(row, id)) logits[id] = kMinusInfinity;
  }
  if (row.suppresses()) {
    for (int64_t i = 0; i < row.suppressed_count; ++i) logits[row.suppressed[i]] = kMinusInfinity;
  }
  for (int32_t id = 0; id < vocabulary; ++id) {
    if (!Allowed(row, id)) logits[id] = kMinusInfinity;
  }
  return logits;
}

// Steps 7 to 10 on the ids in sorted order.
class Filters {
 public:
  Filters(const SampleRow& row, const std::vector<float>& logits, float largest)
      : row_(row),
        logits_(logits),
        largest_(largest),
        inverse_(1.0 / static_cast<double>(row.temperature)) {}

  void Apply(std::vector<int32_t>* ids) const {
    if (row_.top_k > 0 && row_.top_k < ids->size()) ids->resize(row_.top_k);
    if (row_.top_p < 1) Cut(static_cast<double>(row_.top_p) * Total(*ids), ids);
    if (row_.min_p > 0) {
      const auto weak = [&](int32_t id) { return Weight(id) < static_cast<double>(row_.min_p); };
      ids->erase(std::remove_if(ids->begin(), ids->end(), weak), ids->end());
    }
    if (row_.typical_p > 0 && row_.typical_p < 1) KeepTypical(ids);
  }

 private:
  double X(int32_t id) const { return Exponent(logits_[id], largest_, inverse_); }
  double Weight(int32_t id) const { return SoftmaxWeight(X(id)); }

  template <typename Term>
  double Sum(std::vector<int32_t> ids, const Term& term) const {
    std::sort(ids.begin(), ids.end());
    double lanes[8] = {};
    for (int32_t id : ids) lanes[id % 8] += term(id);
    return FoldEight(lanes);
  }
  double Total(const std::vector<int32_t>& ids) const {
    return Sum(ids, [&](int32_t id) { return Weight(id); });
  }

  void Cut(double wanted, std::vector<int32_t>* ids) const {
    double sum = 0;
    for (size_t i = 0; i < ids->size(); ++i) {
      sum += Weight((*ids)[i]);
      if (sum >= wanted) {
        ids->resize(i + 1);
        return;
      }
    }
  }

  void KeepTypical(std::vector<int32_t>* ids) const {
    const double total = Total(*ids);
    const double mean =
        Sum(*ids, [&](int32_t id) { return WeightedExponent(Weight(id), X(id)); }) / total;
    std::sort(ids->begin(), ids->end(), [&](int32_t a, int32_t b) {
      const double distance_a = std::abs(X(a) - mean), distance_b = std::abs(X(b) - mean);
      return distance_a != distance_b ? distance_a < distance_b : a < b;
    });
    Cut(static_cast<double>(row_.typical_p) * total, ids);
  }

  const SampleRow& row_;
  const std::vector<float>& logits_;
  const float largest_;
  const double inverse_;
};

// The ids whose logit is finite, (logit descending, id ascending).
std::vector<int32_t> Sorted(const float* logits, int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocabulary; ++id) {
    if (std::isfinite(logits[id])) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  return ids;
}

}  // namespace

std::vector<int32_t> SurvivorsRef(const SampleRow& row, int64_t vocabulary) {
  if (!Valid(row.logits, vocabulary)) return {};
  const std::vector<float> logits = Process(row, vocabulary);
  std::vector<int32_t> ids = Sorted(logits.data(), vocabulary);
  if (ids.empty()) return {};
  if (row.temperature == 0) return {ids.front()};
  Filters(row, logits, logits[ids.front()]).Apply(&ids);
  std::sort(ids.begin(), ids.end());
  return ids;
}

int32_t SampleRef(const SampleRow& row, int64_t vocabulary) {
  const std::vector<int32_t> ids = SurvivorsRef(row, vocabulary);
  if (ids.empty() || row.temperature == 0) return ids.empty() ? -1 : ids.front();
  const std::vector<float> logits = Process(row, vocabulary);
  int32_t best_id = ids.front();
  double best = GumbelScore(row, logits[best_id], best_id);
  for (int32_t id : ids) {
    const double score = GumbelScore(row, logits[id], id);
    if (score > best) {
      best = score;
      best_id = id;
    }
  }
  return best_id;
}

bool LogprobsRef(const float* logits, int64_t vocabulary, int32_t id, int top,
                 TokenLogprobs* result) {
  const std::vector<int32_t> sorted = Sorted(logits, vocabulary);
  if (!Valid(logits, vocabulary) || sorted.empty()) return false;
  const float largest = logits[sorted.front()];
  double lanes[8] = {};
  for (int64_t i = 0; i < vocabulary; ++i) {
    lanes[i % 8] += SoftmaxWeight(Exponent(logits[i], largest, 1.0));
  }
  const double log_total = std::log(FoldEight(lanes));
  result->logprob = Logprob(logits[id], largest, log_total);
  result->top_count = static_cast<int32_t>(std::min(static_cast<size_t>(top), sorted.size()));
  for (int32_t i = 0; i < result->top_count; ++i) {
    result->top_ids[i] = sorted[i];
    result->top_logprobs[i] = Logprob(logits[sorted[i]], largest, log_total);
  }
  return true;
}

}  // namespace pergola
