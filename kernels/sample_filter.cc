// Steps 7 to 10 of sample.h: which ids the draw may choose. The survivors are those of the sorted
// lists, but few lists are ever sorted: ids are gathered around the place where the cut must fall,
// and the cut is found by selection. A sum in another order than the list's differs from it by less
// than a bound; where that leaves the cut in doubt, the list is sorted after all.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/sample_math.h"
#include "kernels/sample_space.h"

namespace pergola {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Weights are computed this many at a time, on the stack; a multiple of the eight lanes.
constexpr int64_t kPieceIds = 512;
// Ranges up to this many candidates are sorted.
constexpr int64_t kSmallRange = 64;
// More candidates than this are summed through a dense row instead of sorting them by id.
constexpr int64_t kFewCandidates = 2048;
// Exponents this far below the largest have no weight (SoftmaxWeight), so that doubling a distance
// beyond it gathers all.
constexpr double kAllDistance = 1024;

bool Before(const Candidate& a, const Candidate& b) {
  return a.key != b.key ? a.key < b.key : a.id < b.id;
}

// Appends ids to the candidates, keyed for the list of falling logits; returns their weight.
double Append(const int32_t* ids, int64_t count, SampleDraw* draw) {
  float logits[kPieceIds];
  double weights[kPieceIds];
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kPieceIds) {
    const int64_t piece = std::min(kPieceIds, count - begin);
    for (int64_t i = 0; i < piece; ++i) logits[i] = draw->logits[ids[begin + i]];
    SoftmaxWeights(draw->target, logits, piece, draw->largest, draw->inverse, weights);
    Candidate* out = draw->space.candidates + draw->count;
    for (int64_t i = 0; i < piece; ++i) {
      out[i] = {weights[i], -static_cast<double>(logits[i]), ids[begin + i], logits[i]};
      sum += weights[i];
    }
    draw->count += piece;
  }
  return sum;
}

// Gathers the ids with low <= logit < high.
double AppendRange(float low, float high, SampleDraw* draw) {
  const int64_t count =
      CollectRange(draw->target, draw->logits, draw->vocabulary, low, high, draw->space.ids);
  return Append(draw->space.ids, count, draw);
}

// Cuts the candidates at the first place of the sorted list where the running sum reaches `wanted`;
// false, with all of them kept, if it does not.
bool CutSorted(double wanted, SampleDraw* draw) {
  Candidate* all = draw->space.candidates;
  std::sort(all, all + draw->count, Before);
  double sum = 0;
  for (int64_t i = 0; i < draw->count; ++i) {
    sum += all[i].weight;
    if (sum >= wanted) {
      draw->count = i + 1;
      return true;
    }
  }
  return false;
}

// The same by selection. Two orders of adding n weights differ by at most 2 (n - 1) roundings of
// 2^-53 of the sum each; the margin is twice that.
bool Cut(double wanted, double total, SampleDraw* draw) {
  Candidate* all = draw->space.candidates;
  const double margin = static_cast<double>(draw->count) * total * 0x1.0p-51;
  int64_t low = 0, high = draw->count;
  double sum = 0;  // of [0, low)
  while (high - low > kSmallRange) {
    const int64_t middle = low + (high - low) / 2;
    std::nth_element(all + low, all + middle, all + high, Before);
    double reached = sum;
    for (int64_t i = low; i < middle; ++i) reached += all[i].weight;
    if (!(std::abs(reached - wanted) > margin)) return CutSorted(wanted, draw);
    if (reached > wanted) {
      high = middle;
    } else {
      sum = reached;
      low = middle;
    }
  }
  std::sort(all + low, all + high, Before);
  for (int64_t i = low; i < high; ++i) {
    sum += all[i].weight;
    if (!(std::abs(sum - wanted) > margin)) return CutSorted(wanted, draw);
    if (sum > wanted) {
      draw->count = i + 1;
      return true;
    }
  }
  return high < draw->count ? CutSorted(wanted, draw) : false;
}

// The f32 at or below `bound` that is finite.
float FloorBound(double bound) {
  if (!(bound > static_cast<double>(kLowest))) return kLowest;
  const auto rounded = static_cast<float>(bound);
  return static_cast<double>(rounded) > bound ? std::nextafter(rounded, kLowest) : rounded;
}

// top_p over all ids: gathers those within a growing distance of the largest logit until they
// suffice.
void CollectTopP(SampleDraw* draw) {
  const double total = TotalWeight(draw->target, draw->logits, draw->vocabulary, draw->largest,
                                   draw->inverse, nullptr);
  const double wanted = static_cast<double>(draw->row->top_p) * total;
  const double temperature = static_cast<double>(draw->row->temperature);
  float high = kInfinity;
  double sum = 0;
  for (double distance = 2;; distance *= 1.5) {
    const bool all = distance > kAllDistance;
    const float low =
        all ? kLowest : FloorBound(static_cast<double>(draw->largest) - distance * temperature);
    sum += AppendRange(low, high, draw);
    high = low;
    if (!all && sum < wanted) continue;
    if (Cut(wanted, total, draw) || all) return;
  }
}

// min_p over all ids. The bound lies below every logit that can pass, by far more than the error of
// a weight (1e-15 of it).
void CollectMinP(SampleDraw* draw) {
  const double temperature = static_cast<double>(draw->row->temperature);
  const double exponent = std::log(static_cast<double>(draw->row->min_p)) - 1e-9;
  const double largest = static_cast<double>(draw->largest);
  const double margin = 1e-12 * std::abs(largest);
  AppendRange(FloorBound(largest + exponent * temperature - margin), kInfinity, draw);
}

void KeepMinP(SampleDraw* draw) {
  Candidate* all = draw->space.candidates;
  const double least = static_cast<double>(draw->row->min_p);
  Candidate* end =
      std::remove_if(all, all + draw->count, [&](const Candidate& c) { return c.weight < least; });
  draw->count = end - all;
}

// Total and sum of weight * x over the candidates.
double CandidateTotal(SampleDraw* draw, double* weighted) {
  Candidate* all = draw->space.candidates;
  if (draw->count > kFewCandidates) {
    float* dense = draw->space.edited;
    std::fill_n(dense, draw->vocabulary, -kInfinity);
    for (int64_t i = 0; i < draw->count; ++i) dense[all[i].id] = all[i].logit;
    return TotalWeight(draw->target, dense, draw->vocabulary, draw->largest, draw->inverse,
                       weighted);
  }
  std::sort(all, all + draw->count,
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double lanes[8] = {}, weighted_lanes[8] = {};
  for (int64_t i = 0; i < draw->count; ++i) {
    const double x = Exponent(all[i].logit, draw->largest, draw->inverse);
    lanes[all[i].id % 8] += all[i].weight;
    weighted_lanes[all[i].id % 8] += WeightedExponent(all[i].weight, x);
  }
  if (weighted != nullptr) *weighted = FoldEight(weighted_lanes);
  return FoldEight(lanes);
}

// Keys the candidates by their distance from the mean; drops those farther than `farthest`, and
// returns the weight of the rest.
double KeyByDistance(double mean, double farthest, SampleDraw* draw) {
  Candidate* all = draw->space.candidates;
  int64_t kept = 0;
  double sum = 0;
  for (int64_t i = 0; i < draw->count; ++i) {
    all[i].key = std::abs(Exponent(all[i].logit, draw->largest, draw->inverse) - mean);
    if (all[i].key > farthest) continue;
    sum += all[i].weight;
    all[kept++] = all[i];
  }
  draw->count = kept;
  return sum;
}

// typical_p over the candidates.
void KeepTypical(SampleDraw* draw) {
  double weighted = 0;
  const double total = CandidateTotal(draw, &weighted);
  KeyByDistance(weighted / total, std::numeric_limits<double>::infinity(), draw);
  Cut(static_cast<double>(draw->row->typical_p) * total, total, draw);
}

// typical_p over all ids: gathers those within a growing distance of the mean until they suffice.
// The bounds on the logit are wider than the distance by more than their roundings; what is beyond
// the distance is dropped again.
void CollectTypical(SampleDraw* draw) {
  double weighted = 0;
  const double total = TotalWeight(draw->target, draw->logits, draw->vocabulary, draw->largest,
                                   draw->inverse, &weighted);
  const double mean = weighted / total;
  const double wanted = static_cast<double>(draw->row->typical_p) * total;
  const double temperature = static_cast<double>(draw->row->temperature);
  const double largest = static_cast<double>(draw->largest);
  for (double distance = 0.5;; distance *= 2) {
    const bool all = distance > kAllDistance;
    const double reach = distance * temperature;
    const double center = largest + mean * temperature;
    const double margin = 1e-12 * (std::abs(largest) + std::abs(mean * temperature) + reach);
    float low = kLowest, high = kInfinity;
    if (!all) {
      low = FloorBound(center - reach - margin);
      high = -FloorBound(-(center + reach + margin));
      high = std::nextafter(high, kInfinity);  // CollectRange leaves `high` itself out
    }
    draw->count = 0;
    AppendRange(low, high, draw);
    const double infinite = std::numeric_limits<double>::infinity();
    const double sum = KeyByDistance(mean, all ? infinite : distance, draw);
    if (!all && sum < wanted) continue;
    if (Cut(wanted, total, draw) || all) return;
  }
}

}  // namespace

int64_t CollectTopK(CpuTarget target, const float* logits, int64_t vocabulary, int64_t top_k,
                    int32_t* ids) {
  // Ids that beat the weakest kept so far are gathered, and the surplus is thrown out whenever
  // twice top_k have come together.
  const auto by_rank = [logits](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  const int64_t limit = std::min(vocabulary, 2 * top_k + 64);
  float bound = -kInfinity;
  int64_t count = 0;
  const auto shrink = [&] {
    if (count <= top_k) return;
    std::nth_element(ids, ids + top_k - 1, ids + count, by_rank);
    count = top_k;
    // Later ids have to be larger: on equal logits the lower id stays.
    bound = logits[ids[top_k - 1]];
  };
  if (top_k == 0) return 0;
  for (int64_t id = -1;;) {
    id = NextAbove(target, logits, id + 1, vocabulary, bound);
    if (id == vocabulary) break;
    ids[count++] = static_cast<int32_t>(id);
    if (count == limit) shrink();
  }
  shrink();
  return count;
}

double TotalWeight(CpuTarget target, const float* logits, int64_t vocabulary, float largest,
                   double inverse_temperature, double* weighted) {
  double lanes[8] = {}, weighted_lanes[8] = {};
  WeightLanes(target, logits, vocabulary, static_cast<double>(largest), inverse_temperature,
              weighted != nullptr, lanes, weighted_lanes);
  if (weighted != nullptr) *weighted = FoldEight(weighted_lanes);
  return FoldEight(lanes);
}

void Filter(SampleDraw* draw) {
  const SampleRow& row = *draw->row;
  const bool typical = row.typical_p > 0 && row.typical_p < 1;
  bool collected = true;
  draw->count = 0;
  if (row.top_k > 0 && row.top_k < draw->vocabulary) {
    Append(draw->space.ids,
           CollectTopK(draw->target, draw->logits, draw->vocabulary, row.top_k, draw->space.ids),
           draw);
    if (row.top_p < 1) {
      const double total = CandidateTotal(draw, nullptr);
      Cut(static_cast<double>(row.top_p) * total, total, draw);
    }
  } else if (row.top_p < 1) {
    CollectTopP(draw);
  } else {
    collected = false;
  }
  if (row.min_p > 0) {
    if (!collected) CollectMinP(draw);
    collected = true;
    KeepMinP(draw);
  }
  if (!typical) return;
  if (collected) {
    KeepTypical(draw);
  } else {
    CollectTypical(draw);
  }
}

}  // namespace pergola
