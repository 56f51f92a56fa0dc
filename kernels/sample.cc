#include "kernels/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/cpu/sample_cpu.h"
#include "kernels/sample_math.h"

namespace pergola {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Weights are computed this many ids at a time, on the stack; a multiple of the eight lanes of the
// total.
constexpr int64_t kPieceIds = 512;

// One draw: the logits with forbidden ids at minus infinity, and room for candidates.
struct Draw {
  const SampleRow* row = nullptr;
  CpuTarget target = CpuTarget::kPortable;
  const float* logits = nullptr;
  int64_t vocabulary = 0;
  float largest = 0;
  int32_t* ids = nullptr;  // [vocabulary]
  int64_t count = 0;       // of candidates in `ids`

  double Weight(int32_t id) const {
    const double inverse = 1.0 / static_cast<double>(row->temperature);
    return SoftmaxWeight((static_cast<double>(logits[id]) - static_cast<double>(largest)) *
                         inverse);
  }
};

// The order of the sorted list.
struct ByRank {
  const float* logits;
  bool operator()(int32_t a, int32_t b) const {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  }
};

// Puts the first top_k of the sorted list into draw->ids, unsorted: ids that beat the weakest kept
// so far are gathered, and the surplus is thrown out whenever twice top_k have come together.
void CollectTopK(Draw* draw, int64_t top_k) {
  const ByRank by_rank{draw->logits};
  const int64_t limit = std::min(draw->vocabulary, 2 * top_k + 64);
  float bound = kMinusInfinity;
  draw->count = 0;
  const auto shrink = [&] {
    if (draw->count <= top_k) return;
    std::nth_element(draw->ids, draw->ids + top_k - 1, draw->ids + draw->count, by_rank);
    draw->count = top_k;
    // Later ids have to be larger: on equal logits the lower id stays.
    bound = draw->logits[draw->ids[top_k - 1]];
  };
  for (int64_t id = -1;;) {
    id = NextAbove(draw->target, draw->logits, id + 1, draw->vocabulary, bound);
    if (id == draw->vocabulary) break;
    draw->ids[draw->count++] = static_cast<int32_t>(id);
    if (draw->count == limit) shrink();
  }
  shrink();
}

// Sum of the weights of all ids, or of the candidates only.
double TotalOfAll(const Draw& draw) {
  double weights[kPieceIds];
  double lanes[8] = {};
  const double inverse = 1.0 / static_cast<double>(draw.row->temperature);
  for (int64_t begin = 0; begin < draw.vocabulary; begin += kPieceIds) {
    const int64_t count = std::min(kPieceIds, draw.vocabulary - begin);
    SoftmaxWeights(draw.target, draw.logits + begin, count, draw.largest, inverse, weights);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += weights[i + lane];
    }
    for (; i < count; ++i) lanes[i % 8] += weights[i];
  }
  return FoldEight(lanes);
}

double TotalOfCandidates(Draw* draw) {
  std::sort(draw->ids, draw->ids + draw->count);
  double lanes[8] = {};
  for (int64_t i = 0; i < draw->count; ++i) lanes[draw->ids[i] % 8] += draw->Weight(draw->ids[i]);
  return FoldEight(lanes);
}

// Sorts the candidates and cuts them where their running sum reaches `wanted`; false if it does
// not.
bool CutAt(Draw* draw, double wanted) {
  std::sort(draw->ids, draw->ids + draw->count, ByRank{draw->logits});
  double sum = 0;
  for (int64_t i = 0; i < draw->count; ++i) {
    sum += draw->Weight(draw->ids[i]);
    if (sum >= wanted) {
      draw->count = i + 1;
      return true;
    }
  }
  return false;
}

// top_p over all ids: looks at the ids within a distance of the largest logit, and doubles it until
// they suffice.
void CollectTopP(Draw* draw) {
  const double wanted = static_cast<double>(draw->row->top_p) * TotalOfAll(*draw);
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  for (double distance = 2;; distance *= 2) {
    const double edge =
        static_cast<double>(draw->largest) - distance * static_cast<double>(draw->row->temperature);
    const bool all = distance > 1024;  // weights are 0 beyond 700
    const float bound = all || edge < kLowest ? kLowest : static_cast<float>(edge);
    draw->count = 0;
    for (int64_t id = -1;;) {
      id = NextAtLeast(draw->target, draw->logits, id + 1, draw->vocabulary, bound);
      if (id == draw->vocabulary) break;
      draw->ids[draw->count++] = static_cast<int32_t>(id);
    }
    if (CutAt(draw, wanted) || all) return;
  }
}

int32_t BestCandidate(const Draw& draw) {
  int32_t best_id = draw.ids[0];
  double best = GumbelScore(*draw.row, draw.logits[best_id], best_id);
  for (int64_t i = 1; i < draw.count; ++i) {
    const int32_t id = draw.ids[i];
    const double score = GumbelScore(*draw.row, draw.logits[id], id);
    if (score > best || (score == best && id < best_id)) {
      best = score;
      best_id = id;
    }
  }
  return best_id;
}

// The draw over all ids. An id wins only if its noise g exceeds best - z. As -log(u) >= 1 - u, g is
// at most -log(1 - u): where 1 - u is above e^(z - best), a weight times a factor, the two
// logarithms need not be taken.
int32_t BestOfAll(const Draw& draw, int32_t first_id) {
  const SampleRow& row = *draw.row;
  const double inverse = 1.0 / static_cast<double>(row.temperature);
  const double offset = static_cast<double>(draw.largest) / static_cast<double>(row.temperature);
  int32_t best_id = first_id;
  double best = GumbelScore(row, draw.logits[first_id], first_id);
  // The margin covers the roundings of weight, factor and score, below 1e-9 for offsets up to 1e6.
  // Beyond (temperatures near 0) every id is drawn: an infinite factor passes them all.
  constexpr double kMargin = 1 + 1e-6;
  const double margin = std::abs(offset) < 1e6 ? kMargin : std::numeric_limits<double>::infinity();
  double factor = std::exp(offset - best) * margin;
  double weights[kPieceIds];
  for (int64_t begin = 0; begin < draw.vocabulary; begin += kPieceIds) {
    const int64_t count = std::min(kPieceIds, draw.vocabulary - begin);
    SoftmaxWeights(draw.target, draw.logits + begin, count, draw.largest, inverse, weights);
    for (int64_t i = 0; i < count; ++i) {
      const auto id = static_cast<int32_t>(begin + i);
      if (draw.logits[id] == kMinusInfinity) continue;
      const double u = UniformDraw(row.seed, row.index, row.position, static_cast<uint32_t>(id));
      if (1 - u > weights[i] * factor) continue;
      const double score = GumbelScore(row, draw.logits[id], id);
      if (score > best || (score == best && id < best_id)) {
        best = score;
        best_id = id;
        factor = std::exp(offset - best) * margin;
      }
    }
  }
  return best_id;
}

int64_t RoundUp(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace

int64_t SampleWorkspaceBytes(int64_t vocabulary) {
  return RoundUp(vocabulary * static_cast<int64_t>(sizeof(float))) +
         RoundUp(vocabulary * static_cast<int64_t>(sizeof(int32_t)));
}

int32_t Sample(Stream& stream, const SampleRow& row, int64_t vocabulary) {
  PERGOLA_CHECK(row.temperature >= 0 && vocabulary >= 0);
  if (stream.cpu_target() == CpuTarget::kReference) return SampleRef(row, vocabulary);
  Draw draw;
  draw.row = &row;
  draw.target = stream.cpu_target();
  draw.logits = row.logits;
  draw.vocabulary = vocabulary;
  LogitScan scan = ScanLogits(draw.target, row.logits, vocabulary);
  if (!scan.valid) return -1;
  uint8_t* workspace = stream.Workspace(SampleWorkspaceBytes(vocabulary));
  draw.ids = reinterpret_cast<int32_t*>(workspace +
                                        RoundUp(vocabulary * static_cast<int64_t>(sizeof(float))));
  if (row.mask != nullptr) {
    auto* masked = reinterpret_cast<float*>(workspace);
    for (int64_t i = 0; i < vocabulary; ++i) {
      masked[i] = MaskAllows(row.mask, i) ? row.logits[i] : kMinusInfinity;
    }
    draw.logits = masked;
    scan = ScanLogits(draw.target, masked, vocabulary);
  }
  draw.largest = scan.largest;
  if (scan.largest == kMinusInfinity) return -1;
  const auto first_id =
      static_cast<int32_t>(NextAtLeast(draw.target, draw.logits, 0, vocabulary, scan.largest));
  if (row.temperature == 0) return first_id;
  const bool limits_k = row.top_k > 0 && row.top_k < vocabulary;
  if (limits_k) {
    CollectTopK(&draw, row.top_k);
    if (row.top_p < 1) {
      CutAt(&draw, static_cast<double>(row.top_p) * TotalOfCandidates(&draw));
    }
  } else if (row.top_p < 1) {
    CollectTopP(&draw);
  } else {
    return BestOfAll(draw, first_id);
  }
  return BestCandidate(draw);
}

ValueAndId ArgMax(Stream& stream, const float* logits, int64_t values, int32_t first_id) {
  // The scan of the portable target is scalar code: it serves as the reference too.
  const CpuTarget target = stream.cpu_target();
  const LogitScan scan = ScanLogits(target, logits, values);
  if (!scan.valid) return {std::numeric_limits<float>::quiet_NaN(), -1};
  if (scan.largest == kMinusInfinity) return {kMinusInfinity, -1};
  const int64_t at = NextAtLeast(target, logits, 0, values, scan.largest);
  return {scan.largest, static_cast<int32_t>(first_id + at)};
}

}  // namespace pergola
