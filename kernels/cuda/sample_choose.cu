// One block per row reads the few candidates that SampleJobsCuda left in order, cuts them as the
// filters say, and lets the best score win (steps 7 to 11 of kernels/sample.h). Weights and sums
// are doubles in the order of the list; they may differ from the host's in the last bit, and with
// them, very rarely, the token: the host compares. A row is some kilobytes in the L2 cache, so the
// time is that of a launch. The running sum of top_p is added up by one thread, which stops where
// it reaches top_p: a nucleus of text has some ten ids, and the longest list 1,024, 5 us.
#include "kernels/cuda/sample_choose.h"

#include "kernels/cuda/sample_device.cuh"

namespace pergola {
namespace {

// How many of `count` weights, largest first, the filters keep. One thread's work.
__device__ int32_t KeptBy(const ChooseTask& task, const SampleAnswer& answer, const double* weights,
                          int32_t count) {
  int32_t kept = count;
  if (task.top_p < 1) {
    double total = answer.total;
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
  __shared__ double scratch[kSampleWarps];
  __shared__ int32_t kept_by_filters;
  BeginKernel();
  const ChooseTask task = args.tasks[blockIdx.x];
  const int thread = static_cast<int>(threadIdx.x);
  int32_t token = 0;
  if (task.job >= 0) {
    const SampleJob job = args.jobs[task.job];
    const SampleAnswer answer = args.answers[task.job];
    const bool valid = (answer.flags & kAnswerInvalid) == 0 && answer.id >= 0;
    if (valid) token = answer.id;
    if (valid && task.greedy == 0) {
      const ValueAndId* candidates = args.candidates + task.job * args.stride;
      int32_t kept = answer.candidate_count;
      if (task.top_k > 0 && task.top_k < kept) kept = task.top_k;
      if ((job.flags & kJobDraw) == 0) {
        for (int32_t i = thread; i < kept; i += kSampleThreads) {
          const double x = static_cast<double>(candidates[i].value) - answer.largest;
          values[i] = DeviceWeight(x * job.inverse);
        }
        __syncthreads();
        if (thread == 0) kept_by_filters = KeptBy(task, answer, values, kept);
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
