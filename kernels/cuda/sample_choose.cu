// One block per row reads the few candidates that SampleJobsCuda left in order, cuts them as the
// filters say, and lets the best score win (steps 7 to 11 of kernels/sample.h). The lists of
// several ranks are merged first: a candidate's place is its own in its list and, by bisection, how
// many of each other list come before it; 8 lists of 50 ids take a thread some 70 reads of the
// cache. Weights and sums are doubles in the order of the list; they may differ from the host's in
// the last bit, and with them, very rarely, the token: the host compares. A row is some kilobytes
// in the L2 cache, so the time is that of a launch. The running sum of top_p is added up by one
// thread, which stops where it reaches top_p: a nucleus of text has some ten ids, and the longest
// list 1,024, 5 us.
#include "kernels/cuda/sample_choose.h"

#include "kernels/cuda/sample_device.cuh"

namespace pergola {
namespace {

// What the ranks say about a job, together.
struct AllAnswers {
  bool valid;
  float largest;
  int32_t id;
  double total;
};

__device__ const SampleAnswer& AnswerOf(const ChooseArgs& args, int64_t rank, int32_t job) {
  return reinterpret_cast<const SampleAnswer*>(args.answers + rank * args.rank_bytes)[job];
}
__device__ const ValueAndId* CandidatesOf(const ChooseArgs& args, int64_t rank, int32_t job) {
  const uint8_t* all = args.answers + rank * args.rank_bytes + args.candidates_offset;
  return reinterpret_cast<const ValueAndId*>(all) + job * args.stride;
}

// As MergeAnswers of sample_merge.cc.
__device__ AllAnswers Together(const ChooseArgs& args, int32_t job, double inverse) {
  AllAnswers all = {true, MinusInfinity(), -1, 0};
  for (int64_t rank = 0; rank < args.ranks; ++rank) {
    const SampleAnswer& answer = AnswerOf(args, rank, job);
    all.valid = all.valid && (answer.flags & kAnswerInvalid) == 0;
    // Slices ascend: at equal logits the id that comes first is the lowest.
    if (answer.id < 0 || (all.id >= 0 && !(answer.largest > all.largest))) continue;
    all.largest = answer.largest;
    all.id = answer.id;
  }
  all.valid = all.valid && all.id >= 0;
  if (!all.valid) return all;
  for (int64_t rank = 0; rank < args.ranks; ++rank) {
    const SampleAnswer& answer = AnswerOf(args, rank, job);
    if (answer.id < 0) continue;
    const double x = static_cast<double>(answer.largest) - all.largest;
    all.total += answer.total * DeviceWeight(x * inverse);
  }
  return all;
}

// Candidates of a rank that count.
__device__ int32_t CountOf(const ChooseArgs& args, int64_t rank, const ChooseTask& task) {
  const int32_t count = AnswerOf(args, rank, task.job).candidate_count;
  return task.top_k > 0 && task.top_k < count ? task.top_k : count;
}

// How many of a list, largest first, come before a candidate of another rank.
__device__ int32_t Before(const ValueAndId* list, int32_t count, float value, bool before_equals) {
  int32_t low = 0, high = count;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    const float other = list[middle].value;
    if (other > value || (before_equals && other == value)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The first kMaxCandidates of all ranks' candidates in order; their number. Lists that are not in
// order (kJobDraw), and few, one after the other.
__device__ int32_t MergeLists(const ChooseArgs& args, const ChooseTask& task, bool ordered,
                              ValueAndId* merged) {
  int32_t total = 0;
  for (int64_t rank = 0; rank < args.ranks; ++rank) {
    const ValueAndId* own = CandidatesOf(args, rank, task.job);
    const int32_t count = CountOf(args, rank, task);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kSampleThreads) {
      int32_t place = i;
      for (int64_t other = 0; other < args.ranks; ++other) {
        if (other == rank) continue;
        if (ordered) {
          place += Before(CandidatesOf(args, other, task.job), CountOf(args, other, task),
                          own[i].value, other < rank);
        } else if (other < rank) {
          place += CountOf(args, other, task);
        }
      }
      if (place < kMaxCandidates) merged[place] = own[i];
    }
    total += count;
  }
  __syncthreads();
  return total < kMaxCandidates ? total : kMaxCandidates;
}

// How many of `count` weights, largest first, the filters keep. One thread's work.
__device__ int32_t KeptBy(const ChooseTask& task, double all_total, const double* weights,
                          int32_t count) {
  int32_t kept = count;
  if (task.top_p < 1) {
    double total = all_total;
    if (task.top_k > 0) {
      total = 0;
      for (int32_t i = 0; i < count; ++i) total += weights[i];
    }
    const double wanted = static_cast<double>(task.top_p) * total;
    double sum = 0;
    for (kept = 0; kept < count && (kept == 0 || sum < wanted); ++kept) sum += weights[kept];
  }
  if (task.min_p > 0) {
    const auto least = static_cast<double>(task.min_p);
    while (kept > 1 && weights[kept - 1] < least) --kept;
  }
  return kept;
}

__device__ double ScoreOf(const SampleJob& job, const ValueAndId& candidate) {
  const double u = UniformOfBits(DrawBits(job, static_cast<uint32_t>(candidate.id)));
  return static_cast<double>(candidate.value) / job.temperature - log(-log(u));
}

// The best score of the first `kept` candidates; ties go to the lowest id.
__device__ int32_t Winner(const SampleJob& job, const ValueAndId* candidates, int32_t kept,
                          double* scores, double* scratch, int32_t none) {
  const int thread = static_cast<int>(threadIdx.x);
  double best = -HUGE_VAL;
  for (int32_t i = thread; i < kept; i += kSampleThreads) {
    scores[i] = ScoreOf(job, candidates[i]);
    best = scores[i] > best ? scores[i] : best;
  }
  best = MaxOverBlock(best, scratch);
  // Ids are exact in a double; the largest of minus the id is the lowest id.
  double lowest = -HUGE_VAL;
  for (int32_t i = thread; i < kept; i += kSampleThreads) {
    const auto id = -static_cast<double>(candidates[i].id);
    if (scores[i] == best && id > lowest) lowest = id;
  }
  lowest = MaxOverBlock(lowest, scratch);
  return lowest == -HUGE_VAL ? none : static_cast<int32_t>(-lowest);
}

__global__ void __launch_bounds__(kSampleThreads) ChooseKernel(ChooseArgs args) {
  __shared__ double values[kMaxCandidates];  // weights, then scores
  __shared__ ValueAndId candidates[kMaxCandidates];
  __shared__ double scratch[kSampleWarps];
  __shared__ int32_t kept_by_filters;
  BeginKernel();
  const ChooseTask task = args.tasks[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  int32_t token = 0;
  if (task.job >= 0) {
    const SampleJob job = args.jobs[task.job];
    const AllAnswers all = Together(args, task.job, job.inverse);
    if (all.valid) token = all.id;
    if (all.valid && task.greedy == 0) {
      const bool filters = (job.flags & kJobDraw) == 0;
      int32_t kept = MergeLists(args, task, filters, candidates);
      if (task.top_k > 0 && task.top_k < kept) kept = task.top_k;
      if (filters) {
        for (int32_t i = thread; i < kept; i += kSampleThreads) {
          const double x = static_cast<double>(candidates[i].value) - all.largest;
          values[i] = DeviceWeight(x * job.inverse);
        }
        __syncthreads();
        if (thread == 0) kept_by_filters = KeptBy(task, all.total, values, kept);
        __syncthreads();
        kept = kept_by_filters;
      }
      token = Winner(job, candidates, kept, values, scratch, token);
    }
  }
  if (thread == 0) args.tokens[task.entry] = token;
}

}  // namespace

void ChooseTokensCuda(const CudaContext& context, const ChooseArgs& args) {
  if (args.count == 0) return;
  Launch(ChooseKernel, dim3(static_cast<unsigned>(args.count)), kSampleThreads, 0, context, args);
}

}  // namespace pergola
