// From the ranks' answers about their slices (kernels/cuda/sample_job.h) to what SampleTasks of
// kernels/sample.h would have answered. Plain host code, pure: every rank that merges the same
// answers comes to the same result.
//
// The drawn id is exactly the one of kernels/sample.h. Where the answers do not suffice for that,
// the merge says so, and the caller copies the row's logits to the host and gives them to
// SampleTasks. They suffice for
//   temperature 0        always
//   no filter            but for one draw in 10^8, and temperatures so small or large that the
//                        noise drowns (|largest logit / temperature| above 10^12)
//   top_k                up to kMaxCandidates, whatever filters follow
//   top_p without top_k  if the prefix ends within the candidates, and its last running sum is not
//                        within TotalError of top_p * total (once in 10^8 rows); then whatever
//                        filters follow
//   min_p without both   if a candidate lies below the cut; then typical_p too
//   typical_p alone      only if the candidates are all ids (small vocabularies, tight masks)
// Log-probabilities are always there. They differ from those of SampleTasks by the logarithm of
// totals TotalError apart, before the one rounding to f32.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/sample_job.h"
#include "kernels/sample.h"
#include "kernels/stream.h"
#include "model/layout.h"

namespace pergola {

// How the answers of one call lie in memory, the same on every rank: [jobs] SampleAnswer, then
// [jobs, stride] ValueAndId, then if `raw` [jobs, stride] f32.
struct AnswerLayout {
  int64_t jobs = 0;
  int64_t stride = 0;
  bool raw = false;

  int64_t candidates_offset() const { return jobs * static_cast<int64_t>(sizeof(SampleAnswer)); }
  int64_t raw_offset() const {
    return candidates_offset() + jobs * stride * static_cast<int64_t>(sizeof(ValueAndId));
  }
  // Whole words, so that the next rank's may follow.
  int64_t bytes() const {
    const int64_t raw_bytes = raw ? jobs * stride * static_cast<int64_t>(sizeof(float)) : 0;
    return raw_offset() + (raw_bytes + 7) / 8 * 8;
  }
};

// The jobs that answer a task.
struct TaskJobs {
  int32_t draw = -1;      // -1: none
  int32_t logprobs = -1;  // may be the same as `draw`
  bool host = false;      // no job can: the row has to be copied
};

// Answers of all ranks of a stage, slices ascending.
struct RankAnswers {
  AnswerLayout layout;
  absl::Span<const uint8_t* const> ranks;
  absl::Span<const Range> slices;
  int64_t vocabulary = 0;

  const SampleAnswer& answer(size_t rank, int32_t job) const {
    return reinterpret_cast<const SampleAnswer*>(ranks[rank])[job];
  }
  const ValueAndId* candidates(size_t rank, int32_t job) const {
    return reinterpret_cast<const ValueAndId*>(ranks[rank] + layout.candidates_offset()) +
           job * layout.stride;
  }
  // nullptr: the candidates' values are the logits as they came.
  const float* raw(size_t rank, int32_t job) const {
    if (!layout.raw) return nullptr;
    return reinterpret_cast<const float*>(ranks[rank] + layout.raw_offset()) + job * layout.stride;
  }
};

// An id the draw may choose.
struct MergedId {
  double weight = 0;
  double distance = 0;  // of typical_p
  int32_t id = -1;
  float logit = 0;  // processed
  float raw = 0;
};

// Scratch of one thread; allocates all it will ever need.
class MergeSpace {
 public:
  explicit MergeSpace(int ranks);
  static int64_t Bytes(int ranks);

  std::vector<int32_t> heads;   // [ranks]
  std::vector<MergedId> ids;    // up to kMaxCandidates per rank
  std::vector<MergedId> by_id;  // likewise
};

// The answer to a task, into it. False, with the task unchanged but for its answers, if the row is
// needed. `target`: the instruction set of the exact arithmetic; every one gives the same bits.
bool MergeTask(const RankAnswers& answers, const TaskJobs& jobs, CpuTarget target,
               MergeSpace* space, SampleTask* task);

}  // namespace pergola
