#include "kernels/cuda/sample_merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/sample_cpu.h"
#include "kernels/sample_math.h"

namespace pergola {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Ids are taken over this many at a time.
constexpr int64_t kPieceIds = 64;

// The ids of all slices in order (logit descending, id ascending), as far as the candidates tell.
class RankedIds {
 public:
  RankedIds(const RankAnswers& answers, int32_t job, std::vector<int32_t>* heads)
      : answers_(answers), job_(job), heads_(*heads) {
    heads_.assign(answers.ranks.size(), 0);
  }

  // False at the end of what is known.
  bool Next(MergedId* next) {
    size_t best = heads_.size();
    for (size_t rank = 0; rank < heads_.size(); ++rank) {
      const SampleAnswer& answer = answers_.answer(rank, job_);
      if (heads_[rank] == answer.candidate_count) {
        // What this rank did not list may come before all others.
        if ((answer.flags & kAnswerAll) == 0) return false;
        continue;
      }
      // Slices ascend: at equal logits the id chosen first is the lowest.
      if (best == heads_.size() || Head(rank).value > Head(best).value) best = rank;
    }
    if (best == heads_.size()) {
      all_ = true;
      return false;
    }
    const float* raw = answers_.raw(best, job_);
    next->id = Head(best).id;
    next->logit = Head(best).value;
    next->raw = raw != nullptr ? raw[heads_[best]] : next->logit;
    ++heads_[best];
    return true;
  }
  // Whether Next ended because there are no more ids.
  bool all() const { return all_; }

 private:
  const ValueAndId& Head(size_t rank) const {
    return answers_.candidates(rank, job_)[heads_[rank]];
  }

  const RankAnswers& answers_;
  const int32_t job_;
  std::vector<int32_t>& heads_;
  bool all_ = false;
};

// What the ranks say about one job, together.
struct MergedAnswer {
  bool valid = true;
  bool missed = false;
  float largest = kMinusInfinity;
  int32_t id = -1;
  double total = 0;
  double log_total = 0;
};

MergedAnswer MergeAnswers(const RankAnswers& answers, int32_t job, double inverse) {
  MergedAnswer merged;
  for (size_t rank = 0; rank < answers.ranks.size(); ++rank) {
    const SampleAnswer& answer = answers.answer(rank, job);
    merged.valid = merged.valid && (answer.flags & kAnswerInvalid) == 0;
    merged.missed = merged.missed || (answer.flags & kAnswerMissed) != 0;
    if (answer.id < 0 || (merged.id >= 0 && !(answer.largest > merged.largest))) continue;
    merged.largest = answer.largest;
    merged.id = answer.id;
  }
  merged.valid = merged.valid && merged.id >= 0;
  if (!merged.valid) return merged;
  for (size_t rank = 0; rank < answers.ranks.size(); ++rank) {
    const SampleAnswer& answer = answers.answer(rank, job);
    if (answer.id < 0) continue;
    merged.total += answer.total * SoftmaxWeight(Exponent(answer.largest, merged.largest, inverse));
    merged.log_total +=
        answer.log_total * SoftmaxWeight(Exponent(answer.largest, merged.largest, 1.0));
  }
  return merged;
}

// Steps 7 to 11 of kernels/sample.h on the candidates in order.
class FilteredDraw {
 public:
  FilteredDraw(const RankAnswers& answers, int32_t job, const MergedAnswer& merged,
               CpuTarget target, const SampleRow& row, MergeSpace* space)
      : vocabulary_(answers.vocabulary),
        target_(target),
        row_(row),
        largest_(merged.largest),
        total_(merged.total),
        inverse_(1.0 / static_cast<double>(row.temperature)),
        source_(answers, job, &space->heads),
        ids_(space->ids),
        by_id_(space->by_id) {
    ids_.clear();
  }

  // False if the candidates do not suffice.
  bool Filter() {
    const bool typical = row_.typical_p > 0 && row_.typical_p < 1;
    if (row_.top_k > 0 && row_.top_k < vocabulary_) {
      if (!TakeUpTo(row_.top_k)) return false;
      if (row_.top_p < 1) Cut(static_cast<double>(row_.top_p) * Total(nullptr));
    } else if (row_.top_p < 1) {
      if (!TakeTopP()) return false;
    } else if (row_.min_p > 0) {
      if (!TakeMinP()) return false;
    } else if (!TakeUpTo(vocabulary_)) {
      return false;
    }
    if (row_.min_p > 0) {
      const auto least = static_cast<double>(row_.min_p);
      ids_.erase(std::remove_if(ids_.begin(), ids_.end(),
                                [least](const MergedId& id) { return id.weight < least; }),
                 ids_.end());
    }
    if (typical) KeepTypical();
    return true;
  }

  // The winner; an id of -1 if there is none left.
  MergedId Draw() const;

 private:
  // Takes over up to `count` more ids; fewer only at the end of what is known.
  bool Take(int64_t count) {
    float logits[kPieceIds];
    double weights[kPieceIds];
    const size_t begin = ids_.size();
    MergedId next;
    int64_t taken = 0;
    for (; taken < std::min(count, kPieceIds) && source_.Next(&next); ++taken) {
      logits[taken] = next.logit;
      ids_.push_back(next);
    }
    if (taken == 0) return false;
    SoftmaxWeights(target_, logits, taken, static_cast<double>(largest_), inverse_, weights);
    for (int64_t i = 0; i < taken; ++i) ids_[begin + i].weight = weights[i];
    return true;
  }
  // The first `count` ids, or all; false if they are not known.
  bool TakeUpTo(int64_t count) {
    while (static_cast<int64_t>(ids_.size()) < count) {
      if (!Take(count - static_cast<int64_t>(ids_.size()))) return source_.all();
    }
    return true;
  }
  // top_p: the running sums are those of kernels/sample.h to the last bit, and its total is within
  // TotalError of ours; so the cut is sure where it is clear of both.
  bool TakeTopP() {
    const double wanted = static_cast<double>(row_.top_p) * total_;
    const double margin = wanted * (TotalError(vocabulary_) + 0x1.0p-50);
    double sum = 0;
    for (size_t i = 0; i < ids_.size() || Take(kPieceIds); ++i) {
      sum += ids_[i].weight;
      if (sum < wanted - margin) continue;
      if (!(sum > wanted + margin)) break;
      ids_.resize(i + 1);
      return true;
    }
    if (!TakeUpTo(vocabulary_)) return false;
    Cut(static_cast<double>(row_.top_p) * Total(nullptr));
    return true;
  }
  // Weights fall with the logits but for their roundings, which are far below 1e-9.
  bool TakeMinP() {
    const double below = static_cast<double>(row_.min_p) * (1 - 1e-9);
    while (ids_.empty() || ids_.back().weight >= below) {
      if (!Take(kPieceIds)) return source_.all();
    }
    return true;
  }
  // Total and sum of weight * x, ids ascending in eight lanes.
  double Total(double* weighted) {
    by_id_ = ids_;
    std::sort(by_id_.begin(), by_id_.end(),
              [](const MergedId& a, const MergedId& b) { return a.id < b.id; });
    double lanes[8] = {}, weighted_lanes[8] = {};
    for (const MergedId& id : by_id_) {
      lanes[id.id % 8] += id.weight;
      if (weighted == nullptr) continue;
      weighted_lanes[id.id % 8] +=
          WeightedExponent(id.weight, Exponent(id.logit, largest_, inverse_));
    }
    if (weighted != nullptr) *weighted = FoldEight(weighted_lanes);
    return FoldEight(lanes);
  }
  // The shortest prefix whose running sum reaches `wanted`.
  void Cut(double wanted) {
    double sum = 0;
    for (size_t i = 0; i < ids_.size(); ++i) {
      sum += ids_[i].weight;
      if (sum >= wanted) return ids_.resize(i + 1);
    }
  }
  void KeepTypical() {
    double weighted = 0;
    const double total = Total(&weighted);
    const double mean = weighted / total;
    for (MergedId& id : ids_) {
      id.distance = std::abs(Exponent(id.logit, largest_, inverse_) - mean);
    }
    std::sort(ids_.begin(), ids_.end(), [](const MergedId& a, const MergedId& b) {
      return a.distance != b.distance ? a.distance < b.distance : a.id < b.id;
    });
    Cut(static_cast<double>(row_.typical_p) * total);
  }

  const int64_t vocabulary_;
  const CpuTarget target_;
  const SampleRow& row_;
  const float largest_;
  const double total_;
  const double inverse_;
  RankedIds source_;
  std::vector<MergedId>& ids_;
  std::vector<MergedId>& by_id_;
};

// As -log(u) >= 1 - u, an id whose 1 - u is above its weight times e^(largest / temperature - best)
// cannot beat the best score so far; the margin covers the roundings for quotients up to 1e6, and
// beyond every id is scored.
MergedId FilteredDraw::Draw() const {
  const double offset = static_cast<double>(largest_) / static_cast<double>(row_.temperature);
  const double infinity = std::numeric_limits<double>::infinity();
  const double margin = std::abs(offset) < 1e6 ? 1 + 1e-6 : infinity;
  double best = 0, factor = infinity;
  MergedId winner;
  int32_t ids[kPieceIds];
  double uniform[kPieceIds];
  for (size_t begin = 0; begin < ids_.size(); begin += kPieceIds) {
    const size_t count = std::min<size_t>(kPieceIds, ids_.size() - begin);
    for (size_t i = 0; i < count; ++i) ids[i] = ids_[begin + i].id;
    UniformDraws(target_, row_.seed, row_.index, row_.position, ids, static_cast<int64_t>(count),
                 uniform);
    for (size_t i = 0; i < count; ++i) {
      const MergedId& id = ids_[begin + i];
      if (1 - uniform[i] > id.weight * factor) continue;
      const double score = GumbelScore(row_, id.logit, id.id);
      if (winner.id >= 0 && !(score > best || (score == best && id.id < winner.id))) continue;
      best = score;
      winner = id;
      factor = std::exp(offset - best) * margin;
    }
  }
  return winner;
}

// Of the ids that may win the draw over all ids, the one that does.
MergedId DrawFromNear(const RankAnswers& answers, int32_t job, const SampleRow& row) {
  MergedId winner;
  double best = 0;
  for (size_t rank = 0; rank < answers.ranks.size(); ++rank) {
    const ValueAndId* near = answers.candidates(rank, job);
    const float* raw = answers.raw(rank, job);
    for (int32_t i = 0; i < answers.answer(rank, job).candidate_count; ++i) {
      const double score = GumbelScore(row, near[i].value, near[i].id);
      if (winner.id >= 0 && !(score > best || (score == best && near[i].id < winner.id))) continue;
      best = score;
      winner.id = near[i].id;
      winner.logit = near[i].value;
      winner.raw = raw != nullptr ? raw[i] : near[i].value;
    }
  }
  return winner;
}

bool HasFilters(const SampleRow& row, int64_t vocabulary) {
  return (row.top_k > 0 && row.top_k < vocabulary) || row.top_p < 1 || row.min_p > 0 ||
         (row.typical_p > 0 && row.typical_p < 1);
}

// False if the row is needed.
bool Choose(const RankAnswers& answers, int32_t job, CpuTarget target, const SampleRow& row,
            MergeSpace* space, MergedId* chosen, bool* valid) {
  const bool greedy = row.temperature == 0;
  const double inverse = greedy ? 1.0 : 1.0 / static_cast<double>(row.temperature);
  const MergedAnswer merged = MergeAnswers(answers, job, inverse);
  *valid = merged.valid;
  if (!merged.valid) return true;
  if (greedy) {
    MergedId first;
    RankedIds ids(answers, job, &space->heads);
    // Only rows with edits and log-probabilities come with a candidate, for its unedited logit.
    if (!ids.Next(&first)) first.raw = merged.largest;
    first.id = merged.id;
    *chosen = first;
    return true;
  }
  if (!HasFilters(row, answers.vocabulary)) {
    if (merged.missed) return false;
    *chosen = DrawFromNear(answers, job, row);
  } else {
    FilteredDraw draw(answers, job, merged, target, row, space);
    if (!draw.Filter()) return false;
    *chosen = draw.Draw();
  }
  *valid = chosen->id >= 0;
  return true;
}

// False if the row is needed.
bool TopLogprobs(const RankAnswers& answers, int32_t job, int top, double log_total, float largest,
                 MergeSpace* space, TokenLogprobs* result) {
  RankedIds ids(answers, job, &space->heads);
  MergedId next;
  result->top_count = 0;
  while (result->top_count < top) {
    if (!ids.Next(&next)) return ids.all();
    result->top_ids[result->top_count] = next.id;
    result->top_logprobs[result->top_count++] = Logprob(next.logit, largest, log_total);
  }
  return true;
}

}  // namespace

MergeSpace::MergeSpace(int ranks) : heads(ranks) {
  ids.reserve(static_cast<size_t>(ranks) * kMaxCandidates);
  by_id.reserve(static_cast<size_t>(ranks) * kMaxCandidates);
}

int64_t MergeSpace::Bytes(int ranks) {
  const auto id_bytes = static_cast<int64_t>(sizeof(MergedId));
  return ranks * (static_cast<int64_t>(sizeof(int32_t)) + 2 * id_bytes * kMaxCandidates);
}

bool MergeTask(const RankAnswers& answers, const TaskJobs& jobs, CpuTarget target,
               MergeSpace* space, SampleTask* task) {
  task->valid = false;
  task->id = -1;
  if (jobs.host) return false;
  bool valid = true;
  MergedId chosen;
  if (jobs.draw >= 0 && !Choose(answers, jobs.draw, target, task->row, space, &chosen, &valid)) {
    return false;
  }
  if (jobs.logprobs >= 0 && valid) {
    const MergedAnswer merged = MergeAnswers(answers, jobs.logprobs, 1.0);
    valid = merged.valid;
    const double log_total = std::log(merged.log_total);
    if (valid && task->draw && task->logprobs) {
      task->id_logprobs.logprob = Logprob(chosen.raw, merged.largest, log_total);
      if (!TopLogprobs(answers, jobs.logprobs, task->top, log_total, merged.largest, space,
                       &task->id_logprobs)) {
        return false;
      }
    }
    if (valid && task->target >= 0) {
      float logit = 0;
      for (size_t rank = 0; rank < answers.ranks.size(); ++rank) {
        const Range& slice = answers.slices[rank];
        if (task->target < slice.begin || task->target >= slice.end) continue;
        logit = answers.answer(rank, jobs.logprobs).target_logit;
      }
      task->target_logprobs.logprob = Logprob(logit, merged.largest, log_total);
      if (!TopLogprobs(answers, jobs.logprobs, task->target_top, log_total, merged.largest, space,
                       &task->target_logprobs)) {
        return false;
      }
    }
  }
  task->valid = valid;
  task->id = valid && task->draw ? chosen.id : -1;
  return true;
}

}  // namespace pergola
