#include "kernels/sample.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/cpu/sample_cpu.h"
#include "kernels/sample_math.h"
#include "kernels/sample_space.h"
#include "kernels/thread_pool.h"

namespace pergola {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// The draw looks at this many ids at a time, on the stack.
constexpr int64_t kPieceIds = 512;

int64_t RoundUp(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

template <typename T>
int64_t ArrayBytes(int64_t count) {
  return RoundUp(count * static_cast<int64_t>(sizeof(T)));
}

// The largest score so far. An id beats it only with a noise g above best - z. As -log(u) >= 1 - u,
// g is at most -log(1 - u): where 1 - u is above e^(z - best), a weight times a factor, the two
// logarithms need not be taken.
class GumbelMax {
 public:
  explicit GumbelMax(const SampleDraw& draw)
      : draw_(draw),
        offset_(static_cast<double>(draw.largest) / static_cast<double>(draw.row->temperature)),
        margin_(std::abs(offset_) < 1e6 ? kMargin : std::numeric_limits<double>::infinity()) {}

  // Ids with their processed logits and weights; at most kPieceIds.
  void Add(const int32_t* ids, const float* logits, const double* weights, int64_t count) {
    const SampleRow& row = *draw_.row;
    double uniform[kPieceIds];
    UniformDraws(draw_.target, row.seed, row.index, row.position, ids, count, uniform);
    for (int64_t i = 0; i < count; ++i) {
      if (1 - uniform[i] > weights[i] * factor_) continue;
      if (logits[i] == kMinusInfinity) continue;
      const double score = GumbelScore(row, logits[i], ids[i]);
      if (id_ < 0 || score > best_ || (score == best_ && ids[i] < id_)) {
        best_ = score;
        id_ = ids[i];
        factor_ = std::exp(offset_ - best_) * margin_;
      }
    }
  }
  int32_t id() const { return id_; }

 private:
  // Covers the roundings of weight, factor and score, below 1e-9 for offsets up to 1e6. Beyond
  // (temperatures near 0) every id is drawn: an infinite factor passes them all.
  static constexpr double kMargin = 1 + 1e-6;

  const SampleDraw& draw_;
  const double offset_;
  const double margin_;
  double best_ = 0;
  double factor_ = std::numeric_limits<double>::infinity();
  int32_t id_ = -1;
};

int32_t DrawFromAll(const SampleDraw& draw) {
  GumbelMax best(draw);
  int32_t ids[kPieceIds];
  double weights[kPieceIds];
  for (int64_t begin = 0; begin < draw.vocabulary; begin += kPieceIds) {
    const int64_t count = std::min(kPieceIds, draw.vocabulary - begin);
    for (int64_t i = 0; i < count; ++i) ids[i] = static_cast<int32_t>(begin + i);
    SoftmaxWeights(draw.target, draw.logits + begin, count, draw.largest, draw.inverse, weights);
    best.Add(ids, draw.logits + begin, weights, count);
  }
  return best.id();
}

int32_t DrawFromCandidates(const SampleDraw& draw) {
  GumbelMax best(draw);
  int32_t ids[kPieceIds];
  float logits[kPieceIds];
  double weights[kPieceIds];
  for (int64_t begin = 0; begin < draw.count; begin += kPieceIds) {
    const int64_t count = std::min(kPieceIds, draw.count - begin);
    for (int64_t i = 0; i < count; ++i) {
      const Candidate& candidate = draw.space.candidates[begin + i];
      ids[i] = candidate.id;
      logits[i] = candidate.logit;
      weights[i] = candidate.weight;
    }
    best.Add(ids, logits, weights, count);
  }
  return best.id();
}

// Steps 1 to 6, of a row without NaN or plus infinity: false if no id is left. At temperature 0 the
// token into `greedy`, which is -1 else.
bool Begin(CpuTarget target, const SampleRow& row, int64_t vocabulary, LogitScan scan,
           SampleDraw* draw, int32_t* greedy) {
  draw->row = &row;
  draw->target = target;
  draw->vocabulary = vocabulary;
  draw->logits = row.logits;
  if (row.edits()) {
    EditLogits(row, vocabulary, draw->space);
    draw->logits = draw->space.edited;
    scan = ScanLogits(target, draw->logits, vocabulary);
  }
  draw->largest = scan.largest;
  *greedy = -1;
  if (scan.largest == kMinusInfinity) return false;
  if (row.temperature > 0) {
    draw->inverse = 1.0 / static_cast<double>(row.temperature);
    return true;
  }
  *greedy = static_cast<int32_t>(NextAtLeast(target, draw->logits, 0, vocabulary, scan.largest));
  return true;
}

int32_t DrawToken(CpuTarget target, const SampleRow& row, int64_t vocabulary, const LogitScan& scan,
                  const SampleSpace& space) {
  SampleDraw draw;
  draw.space = space;
  int32_t greedy = -1;
  if (!Begin(target, row, vocabulary, scan, &draw, &greedy)) return -1;
  if (greedy >= 0) return greedy;
  if (!draw.filters()) return DrawFromAll(draw);
  Filter(&draw);
  return DrawFromCandidates(draw);
}

// Of a row without NaN or plus infinity and with a finite logit.
class Logprobs {
 public:
  Logprobs(CpuTarget target, const float* logits, int64_t vocabulary, float largest)
      : target_(target), logits_(logits), vocabulary_(vocabulary), largest_(largest) {
    log_total_ = std::log(TotalWeight(target, logits, vocabulary, largest, 1.0, nullptr));
  }

  void Write(int32_t id, int top, int32_t* scratch, TokenLogprobs* result) const {
    result->logprob = Logprob(logits_[id], largest_, log_total_);
    const int64_t count = CollectTopK(target_, logits_, vocabulary_, top, scratch);
    std::sort(scratch, scratch + count, [this](int32_t a, int32_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    });
    result->top_count = static_cast<int32_t>(count);
    for (int64_t i = 0; i < count; ++i) {
      result->top_ids[i] = scratch[i];
      result->top_logprobs[i] = Logprob(logits_[scratch[i]], largest_, log_total_);
    }
  }

 private:
  const CpuTarget target_;
  const float* const logits_;
  const int64_t vocabulary_;
  const float largest_;
  double log_total_ = 0;
};

void RunReference(int64_t vocabulary, SampleTask* task) {
  TokenLogprobs unused;
  const float* logits = task->row.logits;
  task->valid = LogprobsRef(logits, vocabulary, 0, 0, &unused);
  if (task->valid && task->draw) {
    task->id = SampleRef(task->row, vocabulary);
    task->valid = task->id >= 0;
  }
  if (!task->valid) return;
  if (task->draw && task->logprobs) {
    LogprobsRef(logits, vocabulary, task->id, task->top, &task->id_logprobs);
  }
  if (task->target >= 0) {
    LogprobsRef(logits, vocabulary, task->target, task->target_top, &task->target_logprobs);
  }
}

void RunTask(CpuTarget target, int64_t vocabulary, const SampleSpace& space, SampleTask* task) {
  task->id = -1;
  if (target == CpuTarget::kReference) return RunReference(vocabulary, task);
  const LogitScan scan = ScanLogits(target, task->row.logits, vocabulary);
  task->valid = scan.valid && scan.largest != kMinusInfinity;
  if (task->valid && task->draw) {
    task->id = DrawToken(target, task->row, vocabulary, scan, space);
    task->valid = task->id >= 0;
  }
  const bool of_drawn = task->draw && task->logprobs;
  if (!task->valid || (!of_drawn && task->target < 0)) return;
  const Logprobs logprobs(target, task->row.logits, vocabulary, scan.largest);
  if (of_drawn) logprobs.Write(task->id, task->top, space.ids, &task->id_logprobs);
  if (task->target >= 0) {
    logprobs.Write(task->target, task->target_top, space.ids, &task->target_logprobs);
  }
}

}  // namespace

int64_t SampleSpace::Bytes(int64_t vocabulary, int64_t history) {
  return ArrayBytes<float>(vocabulary) + ArrayBytes<uint32_t>(vocabulary) +
         ArrayBytes<int32_t>(vocabulary + kCollectPadding) + ArrayBytes<Candidate>(vocabulary) +
         ArrayBytes<int32_t>(history);
}

SampleSpace SampleSpace::Cut(uint8_t* memory, int64_t vocabulary) {
  SampleSpace space;
  space.edited = reinterpret_cast<float*>(memory);
  memory += ArrayBytes<float>(vocabulary);
  space.counts = reinterpret_cast<uint32_t*>(memory);
  memory += ArrayBytes<uint32_t>(vocabulary);
  space.ids = reinterpret_cast<int32_t*>(memory);
  memory += ArrayBytes<int32_t>(vocabulary + kCollectPadding);
  space.candidates = reinterpret_cast<Candidate*>(memory);
  memory += ArrayBytes<Candidate>(vocabulary);
  space.borders = reinterpret_cast<int32_t*>(memory);
  return space;
}

int64_t SampleWorkspaceBytes(int64_t vocabulary, int64_t history) {
  return SampleSpace::Bytes(vocabulary, history);
}

int32_t Sample(CpuStream& stream, const SampleRow& row, int64_t vocabulary) {
  PERGOLA_CHECK(row.temperature >= 0 && vocabulary >= 0);
  const CpuTarget target = stream.target();
  if (target == CpuTarget::kReference) return SampleRef(row, vocabulary);
  const LogitScan scan = ScanLogits(target, row.logits, vocabulary);
  if (!scan.valid) return -1;
  uint8_t* memory = stream.Workspace(SampleWorkspaceBytes(vocabulary, row.history_count));
  return DrawToken(target, row, vocabulary, scan, SampleSpace::Cut(memory, vocabulary));
}

std::vector<int32_t> Survivors(CpuStream& stream, const SampleRow& row, int64_t vocabulary) {
  const CpuTarget target = stream.target();
  if (target == CpuTarget::kReference) return SurvivorsRef(row, vocabulary);
  const LogitScan scan = ScanLogits(target, row.logits, vocabulary);
  if (!scan.valid) return {};
  SampleDraw draw;
  draw.space = SampleSpace::Cut(
      stream.Workspace(SampleWorkspaceBytes(vocabulary, row.history_count)), vocabulary);
  int32_t greedy = -1;
  if (!Begin(target, row, vocabulary, scan, &draw, &greedy)) return {};
  if (greedy >= 0) return {greedy};
  std::vector<int32_t> ids;
  if (draw.filters()) {
    Filter(&draw);
    for (int64_t i = 0; i < draw.count; ++i) ids.push_back(draw.space.candidates[i].id);
    std::sort(ids.begin(), ids.end());
    return ids;
  }
  for (int32_t id = 0; id < vocabulary; ++id) {
    if (draw.logits[id] != kMinusInfinity) ids.push_back(id);
  }
  return ids;
}

void SampleTasks(CpuStream& stream, SampleTask* tasks, int64_t count, int64_t vocabulary) {
  int64_t history = 0;
  for (int64_t i = 0; i < count; ++i) {
    PERGOLA_CHECK(tasks[i].top <= kMaxTopLogprobs && tasks[i].target_top <= kMaxTopLogprobs);
    history = std::max(history, tasks[i].row.history_count);
  }
  const int64_t bytes = SampleWorkspaceBytes(vocabulary, history);
  const auto threads = static_cast<int>(std::min<int64_t>(stream.threads(), count));
  uint8_t* memory = stream.Workspace(bytes * threads);
  const CpuTarget target = stream.target();
  std::atomic<int64_t> next{0};
  const auto work = [&](int thread) {
    if (thread >= threads) return;
    const SampleSpace space = SampleSpace::Cut(memory + thread * bytes, vocabulary);
    for (int64_t i = next++; i < count; i = next++) RunTask(target, vocabulary, space, &tasks[i]);
  };
  if (threads <= 1) {
    work(0);
  } else {
    stream.pool().Run(work);
  }
}

ValueAndId ArgMax(CpuStream& stream, const float* logits, int64_t values, int32_t first_id) {
  // The scan of the portable target is scalar code: it serves as the reference too.
  const CpuTarget target = stream.target();
  const LogitScan scan = ScanLogits(target, logits, values);
  if (!scan.valid) return {std::numeric_limits<float>::quiet_NaN(), -1};
  if (scan.largest == kMinusInfinity) return {kMinusInfinity, -1};
  const int64_t at = NextAtLeast(target, logits, 0, values, scan.largest);
  return {scan.largest, static_cast<int32_t>(first_id + at)};
}

}  // namespace pergola
