// Choosing tokens where the logits lie. A job reads its row twice, and hands out a few hundred
// bytes to a few kilobytes:
//   1 parts    blocks of 2,048 logits: their largest, whether one is NaN, their softmax totals, and
//              the maxima of some hundred groups of logits. Values stay in registers between the
//              maximum and the totals, so this is one read of the row.
//   2 prepare  a block per job puts the parts together, in a fixed order, and finds what a logit
//              must reach to be listed.
//   3 collect  reads the row again (from the L2 cache, up to some fifty rows of 131,072 on an H100)
//              and lists the ids that reach it.
//   4 select   a block per job sorts the list, or finds who won the draw.
// Where nothing needs a list (greedy choice, totals), 3 and 4 are left out.
//
// Candidates in order: the M-th largest of the groups' maxima is at most the M-th largest logit, so
// the ids that reach it hold the M best; with four or more times as many groups as M they are few
// more. Where they are too many (ties, or a slice of few groups), select searches the row itself.
//
// Draws over all ids (Gumbel-max): with x = (l - largest) / temperature and Z the sum of e^x, the
// largest of x + g over all ids is a Gumbel variable around log Z (Gumbel, 1954; Maddison et al.,
// "A* Sampling", 2014): it lies below log Z - 3 in e^-20 = 2e-9 of all draws, and e^3 = 20 ids lie
// above that. As g = -log(-log u) > log Z - 3 - x means -log u < e^x e^3 / Z, and 1 - u <= -log u,
// a comparison of 32 random bits in f32, widened by more than its rounding, lists a superset; then
// the scores of the 20 are computed in double. Those within the two machines' roundings of the best
// go to the host, which decides with the arithmetic of kernels/sample.h.
//
// Roofs: 1 and 3 are bound by memory (4 bytes an id each) for greedy choice and candidates. A total
// takes some 20 double operations an id: by the data sheets 1.4 times the memory's time on an H200,
// twice on an A100. The draw takes 10 rounds of Philox an id, some 17 wide multiplications: five
// times the memory's time on an H200, 0.15 ms for 256 rows of 131,072. Ids too unlikely for any of
// the 2^52 values of u skip that.
#include <algorithm>

#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_device.cuh"

namespace pergola {
namespace {

constexpr int kPerThread = 8;
constexpr int64_t kPartValues = kSampleThreads * kPerThread;
constexpr int kMaxGroups = 4096;
constexpr int kListCapacity = 2048;
static_assert(kListCapacity >= 2 * kMaxCandidates && (kListCapacity & (kListCapacity - 1)) == 0);
// Ids above log Z - kDrawDepth may win.
constexpr double kDrawDepth = 3.0;
constexpr double kDrawFactor = 20.085536923187668;  // e^kDrawDepth
// Covers the f32 roundings in e^x of the draw's test: x is off by 3 * 2^-24 |x|, |x| < 100.
constexpr float kDrawMargin = 1.0001F;
// Nothing reaches a bound below the least 1 - u, 2^-53.
constexpr float kLeastDrawBound = 0x1.0p-54F;

struct Part {
  uint64_t best;  // RankKey of the largest; 0: none is finite and allowed
  double total;   // relative to the part's own largest
  double log_total;
  uint64_t bad;
};
struct State {
  double draw_bound;  // log Z - kDrawDepth
  float threshold;    // a candidate reaches it
  float draw_factor;  // kDrawFactor / Z
  float largest;
  int32_t count;  // listed, or more than kListCapacity
  int32_t all;    // the threshold is below every finite logit
  int32_t unused;
};
struct Scratch {
  Part* parts;      // [jobs, part_count]
  float* maxima;    // [jobs, group_count]
  State* states;    // [jobs]
  uint64_t* lists;  // [jobs, kListCapacity]
  int64_t part_count;
  int group_shift;  // a group is the values of 2^shift neighbouring threads
  int groups_per_part;
  int64_t group_count;
};

int64_t PartCount(int64_t values) {
  return std::max<int64_t>(1, (values + kPartValues - 1) / kPartValues);
}

// Reserves in order; with a null base it only counts.
class Cutter {
 public:
  explicit Cutter(uint8_t* base) : base_(base) {}
  template <typename T>
  T* Take(int64_t count) {
    uint8_t* at = base_ + bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* base_;
  int64_t bytes_ = 0;
};

Scratch CutScratch(Cutter* cutter, int64_t jobs, int64_t values) {
  Scratch s = {};
  s.part_count = PartCount(values);
  while (s.part_count * (kSampleThreads >> s.group_shift) > kMaxGroups) ++s.group_shift;
  s.groups_per_part = kSampleThreads >> s.group_shift;
  s.group_count = s.part_count * s.groups_per_part;
  s.parts = cutter->Take<Part>(jobs * s.part_count);
  s.maxima = cutter->Take<float>(jobs * s.group_count);
  s.states = cutter->Take<State>(jobs);
  s.lists = cutter->Take<uint64_t>(jobs * kListCapacity);
  return s;
}

__device__ bool Allowed(const SampleJob& job, const uint8_t* masks, int64_t i) {
  if (job.mask < 0) return true;
  const int64_t bit = i + job.mask_shift;
  return (masks[job.mask + bit / 8] >> (bit % 8) & 1) != 0;
}
// What the choice sees of id i.
__device__ float Processed(const SampleJob& job, const uint8_t* masks, int64_t i) {
  const float value = job.logits[i];
  return Allowed(job, masks, i) ? value : MinusInfinity();
}
__device__ bool Listed(float value) {
  return value > MinusInfinity() && value < HUGE_VALF;
}
// 1 / temperature within f32: of temperatures below 3e-39 it would be infinite, and 0 times it NaN.
__device__ float DrawInverse(const SampleJob& job) {
  return static_cast<float>(fmin(job.inverse, 3.0e38));
}

__device__ double ThreadTotal(const float (&x)[kPerThread], float largest, double inverse) {
  double total = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    total += DeviceWeight((static_cast<double>(x[j]) - static_cast<double>(largest)) * inverse);
  }
  return total;
}
// In f32: the total of a draw only sets how deep it looks.
__device__ double ThreadDrawTotal(const float (&x)[kPerThread], float largest, float inverse) {
  float total = 0;
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    if (Listed(x[j])) total += expf((x[j] - largest) * inverse);
  }
  return static_cast<double>(total);
}

__device__ void StoreGroupMaximum(const float (&x)[kPerThread], const Scratch& s) {
  float group = x[0];
#pragma unroll
  for (int j = 1; j < kPerThread; ++j) group = fmaxf(group, x[j]);
  for (int shift = 0; shift < s.group_shift; ++shift) {
    group = fmaxf(group, __shfl_xor_sync(0xffffffff, group, 1 << shift));
  }
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % (1 << s.group_shift) != 0) return;
  s.maxima[blockIdx.y * s.group_count + blockIdx.x * s.groups_per_part +
           (thread >> s.group_shift)] = group;
}

__global__ void __launch_bounds__(kSampleThreads) PartKernel(SampleArgs args, Scratch s) {
  BeginKernel();
  __shared__ uint64_t keys[kSampleWarps];
  __shared__ double sums[kSampleWarps];
  const SampleJob job = args.jobs[blockIdx.y];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPartValues + threadIdx.x;
  float x[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int64_t i = first + j * kSampleThreads;
    x[j] = i < args.values ? job.logits[i] : MinusInfinity();
  }
  Part part = {};
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int64_t i = first + j * kSampleThreads;
    if (!(x[j] < HUGE_VALF)) part.bad = 1;
    if (i < args.values && !Allowed(job, args.masks, i)) x[j] = MinusInfinity();
    const uint64_t key = Listed(x[j]) ? RankKey(x[j], i) : 0;
    if (key > part.best) part.best = key;
  }
  part.best = MaxOverBlock(part.best, keys);
  part.bad = MaxOverBlock(part.bad, keys);
  const float largest = ValueOfKey(part.best);
  if ((job.flags & kJobDraw) != 0) {
    part.total = SumOverBlock(ThreadDrawTotal(x, largest, DrawInverse(job)), sums);
  } else if ((job.flags & kJobTotal) != 0) {
    part.total = SumOverBlock(ThreadTotal(x, largest, job.inverse), sums);
  }
  if ((job.flags & kJobLogTotal) != 0) {
    part.log_total = SumOverBlock(ThreadTotal(x, largest, 1.0), sums);
  }
  if (job.candidates > 0) StoreGroupMaximum(x, s);
  if (threadIdx.x == 0) s.parts[blockIdx.y * s.part_count + blockIdx.x] = part;
}

// A logit that at least `wanted` of the groups' maxima reach, and not many more of them: by
// bisection. The lowest finite one if fewer than `wanted` groups have a finite maximum.
__device__ float FindThreshold(const float* maxima, int groups, int wanted, float largest,
                               int32_t* counts) {
  uint32_t low = OrderedBits(-3.402823466e38F), high = OrderedBits(largest) + 1;
  if (groups < wanted) return ValueOfOrderedBits(low);
  for (bool first = true; high - low > 1; first = false) {
    // Masked rows, first of all, may have few finite logits.
    const uint32_t middle = first ? low : low + (high - low) / 2;
    const float bound = ValueOfOrderedBits(middle);
    int32_t count = 0;
    for (int i = static_cast<int>(threadIdx.x); i < groups; i += kSampleThreads) {
      count += maxima[i] >= bound ? 1 : 0;
    }
    count = SumOverBlock(count, counts);
    if (count < wanted) {
      if (first) break;
      high = middle;
      continue;
    }
    low = middle;
    if (count <= wanted + wanted / 8) break;
  }
  return ValueOfOrderedBits(low);
}

__global__ void __launch_bounds__(kSampleThreads) PrepareKernel(SampleArgs args, Scratch s) {
  BeginKernel();
  __shared__ uint64_t keys[kSampleWarps];
  __shared__ double sums[kSampleWarps];
  __shared__ int32_t counts[kSampleWarps];
  __shared__ float maxima[kMaxGroups];
  const SampleJob job = args.jobs[blockIdx.x];
  const Part* parts = s.parts + blockIdx.x * s.part_count;
  const int thread = static_cast<int>(threadIdx.x);
  uint64_t best = 0, bad = 0;
  for (int64_t p = thread; p < s.part_count; p += kSampleThreads) {
    if (parts[p].best > best) best = parts[p].best;
    bad |= parts[p].bad;
  }
  best = MaxOverBlock(best, keys);
  bad = MaxOverBlock(bad, keys);
  const float largest = ValueOfKey(best);
  double total = 0, log_total = 0;
  for (int64_t p = thread; p < s.part_count; p += kSampleThreads) {
    const double below =
        static_cast<double>(ValueOfKey(parts[p].best)) - static_cast<double>(largest);
    total += parts[p].total * DeviceWeight(below * job.inverse);
    log_total += parts[p].log_total * DeviceWeight(below);
  }
  total = SumOverBlock(total, sums);
  log_total = SumOverBlock(log_total, sums);
  State state = {};
  state.largest = largest;
  state.threshold = largest;
  if (job.candidates > 0 && best != 0) {
    const float* from = s.maxima + blockIdx.x * s.group_count;
    for (int64_t i = thread; i < s.group_count; i += kSampleThreads) maxima[i] = from[i];
    __syncthreads();
    state.threshold =
        FindThreshold(maxima, static_cast<int>(s.group_count), job.candidates, largest, counts);
    state.all = state.threshold == -3.402823466e38F ? 1 : 0;
  }
  if (thread != 0) return;
  if ((job.flags & kJobDraw) != 0 && best != 0) {
    state.draw_factor = static_cast<float>(kDrawFactor / total);
    state.draw_bound = log(total) - kDrawDepth;
  }
  s.states[blockIdx.x] = state;
  SampleAnswer answer;
  answer.total = total;
  answer.log_total = log_total;
  answer.largest = largest;
  answer.id = best == 0 ? -1 : args.first_id + IdOfKey(best);
  answer.target_logit = job.target >= 0 ? job.logits[job.target] : 0.0F;
  if (bad != 0) answer.flags |= kAnswerInvalid;
  if (best == 0) {
    answer.flags |= kAnswerAll;
  } else if ((job.flags & kJobDraw) != 0) {
    answer.flags |= kAnswerMissed;  // until SelectDraw has found it
  }
  args.answers[blockIdx.x] = answer;
}

__device__ void Append(const Scratch& s, uint64_t key) {
  const int slot = atomicAdd(&s.states[blockIdx.y].count, 1);
  if (slot < kListCapacity) s.lists[blockIdx.y * kListCapacity + slot] = key;
}

// Whether id i may beat log Z - kDrawDepth.
__device__ bool MayWin(const SampleJob& job, float value, float largest, float factor,
                       uint32_t id) {
  const float bound = expf((value - largest) * DrawInverse(job)) * factor * kDrawMargin;
  if (bound < kLeastDrawBound) return false;
  // The leading 32 bits of 1 - u, cut off.
  const uint32_t rest = ~static_cast<uint32_t>(DrawBits(job, id) >> 32);
  return static_cast<float>(rest) * 0x1.0p-32F <= bound;
}

__global__ void __launch_bounds__(kSampleThreads) CollectKernel(SampleArgs args, Scratch s) {
  BeginKernel();
  const SampleJob job = args.jobs[blockIdx.y];
  const bool draw = (job.flags & kJobDraw) != 0;
  if (!draw && job.candidates == 0) return;
  // `count` is counted up meanwhile, so that the state is not read as a whole.
  const State& state = s.states[blockIdx.y];
  const float threshold = state.threshold, largest = state.largest, factor = state.draw_factor;
  const Part& part = s.parts[blockIdx.y * s.part_count + blockIdx.x];
  if (part.best == 0 || (!draw && ValueOfKey(part.best) < threshold)) return;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPartValues + threadIdx.x;
  float x[kPerThread];
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int64_t i = first + j * kSampleThreads;
    x[j] = i < args.values ? Processed(job, args.masks, i) : MinusInfinity();
  }
#pragma unroll
  for (int j = 0; j < kPerThread; ++j) {
    const int64_t i = first + j * kSampleThreads;
    if (!Listed(x[j])) continue;
    const auto id = static_cast<uint32_t>(args.first_id + i);
    if (draw ? MayWin(job, x[j], largest, factor, id) : x[j] >= threshold) {
      Append(s, RankKey(x[j], i));
    }
  }
}

__device__ int32_t CountReaching(const SampleArgs& args, const SampleJob& job, uint64_t bound,
                                 int32_t* counts) {
  int32_t count = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < args.values; i += kSampleThreads) {
    const float value = Processed(job, args.masks, i);
    count += Listed(value) && RankKey(value, i) >= bound ? 1 : 0;
  }
  return SumOverBlock(count, counts);
}

// The list did not hold all that reach the threshold: finds a key that at least job.candidates of
// them reach and at most kListCapacity, and gathers those. Keys are unique, so there is one.
__device__ int32_t SearchRow(const SampleArgs& args, const SampleJob& job, const State& state,
                             uint64_t* keys, int32_t* counts) {
  uint64_t low = static_cast<uint64_t>(OrderedBits(state.threshold)) << 32;
  uint64_t high = static_cast<uint64_t>(OrderedBits(state.largest) + 1) << 32;
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    const int32_t count = CountReaching(args, job, middle, counts);
    if (count < job.candidates) {
      high = middle;
      continue;
    }
    low = middle;
    if (count <= kListCapacity) break;
  }
  __syncthreads();  // the last sum's readers are done
  if (threadIdx.x == 0) counts[0] = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < args.values; i += kSampleThreads) {
    const float value = Processed(job, args.masks, i);
    if (!Listed(value) || RankKey(value, i) < low) continue;
    keys[atomicAdd(&counts[0], 1)] = RankKey(value, i);
  }
  __syncthreads();
  return counts[0];
}

// The logit of id before its row was edited; `value` after. The row's edits ascend by id.
__device__ float Unedited(const SampleArgs& args, const SampleJob& job, int32_t id, float value) {
  int32_t low = job.first_edit, high = job.first_edit + job.edit_count;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (args.edits[middle].id < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const bool edited = low < job.first_edit + job.edit_count && args.edits[low].id == id;
  return edited ? args.unedited[low] : value;
}

__device__ void Store(const SampleArgs& args, const SampleJob& job, int32_t slot, uint64_t key) {
  const int64_t at = blockIdx.x * args.stride + slot;
  const float value = ValueOfKey(key);
  const int32_t id = IdOfKey(key);
  args.candidates[at].value = value;
  args.candidates[at].id = args.first_id + id;
  if (args.candidates_raw == nullptr) return;
  args.candidates_raw[at] = (job.flags & kJobRaw) != 0 ? Unedited(args, job, id, value) : value;
}

__device__ double Score(const SampleArgs& args, const SampleJob& job, uint64_t key) {
  const auto id = static_cast<uint32_t>(args.first_id + IdOfKey(key));
  const double u = UniformOfBits(DrawBits(job, id));
  return static_cast<double>(ValueOfKey(key)) / job.temperature - log(-log(u));
}

// Of the listed ids those whose score is so near the best that the host's rounding may put them
// first. The quotient is exact to a rounding on both machines, and each logarithm to 2 units in
// the last place, so that a score is off by less than 2^-50 (|score| + 64); the margin is four
// times that.
__device__ void SelectDraw(const SampleArgs& args, const SampleJob& job, const State& state,
                           const uint64_t* keys, double* scores, double* sums) {
  const int thread = static_cast<int>(threadIdx.x);
  double best = -HUGE_VAL;
  for (int i = thread; i < state.count; i += kSampleThreads) {
    scores[i] = Score(args, job, keys[i]);
    best = scores[i] > best ? scores[i] : best;
  }
  best = MaxOverBlock(best, sums);
  const double offset = static_cast<double>(state.largest) / job.temperature;
  const double limit = best - 0x1.0p-48 * (fabs(offset) + 64);
  double near = 0;
  for (int i = thread; i < state.count; i += kSampleThreads) {
    if (!(scores[i] >= limit)) continue;
    int rank = 0;  // among those near the best
    for (int j = 0; j < state.count; ++j) {
      rank += scores[j] >= limit && keys[j] > keys[i] ? 1 : 0;
    }
    if (rank < kDrawCandidates) Store(args, job, rank, keys[i]);
    near += 1;
  }
  near = SumOverBlock(near, sums);
  if (thread != 0) return;
  SampleAnswer& answer = args.answers[blockIdx.x];
  // An id that is not listed has a score below the bound.
  if (!(limit >= offset + state.draw_bound) || near > kDrawCandidates) return;
  answer.flags &= ~static_cast<uint32_t>(kAnswerMissed);
  answer.candidate_count = static_cast<int32_t>(near);
}

__device__ void SelectCandidates(const SampleArgs& args, const SampleJob& job, const State& state,
                                 uint64_t* keys, int32_t* counts) {
  int32_t count = state.count;
  if (count > kListCapacity) count = SearchRow(args, job, state, keys, counts);
  int rounded = 2;
  while (rounded < count) rounded *= 2;
  for (int i = count + static_cast<int>(threadIdx.x); i < rounded; i += kSampleThreads) keys[i] = 0;
  SortKeys(keys, rounded);
  const int32_t kept = count < job.candidates ? count : job.candidates;
  for (int i = static_cast<int>(threadIdx.x); i < kept; i += kSampleThreads) {
    Store(args, job, i, keys[i]);
  }
  if (threadIdx.x != 0) return;
  SampleAnswer& answer = args.answers[blockIdx.x];
  answer.candidate_count = kept;
  if (state.all != 0 && state.count == kept) answer.flags |= kAnswerAll;
}

__global__ void __launch_bounds__(kSampleThreads) SelectKernel(SampleArgs args, Scratch s) {
  BeginKernel();
  __shared__ uint64_t keys[kListCapacity];
  __shared__ double scores[kListCapacity];
  __shared__ double sums[kSampleWarps];
  __shared__ int32_t counts[kSampleWarps];
  const SampleJob job = args.jobs[blockIdx.x];
  const State state = s.states[blockIdx.x];
  const bool draw = (job.flags & kJobDraw) != 0;
  if ((!draw && job.candidates == 0) || state.count == 0) return;
  const int listed = state.count < kListCapacity ? state.count : kListCapacity;
  const uint64_t* list = s.lists + blockIdx.x * kListCapacity;
  for (int i = static_cast<int>(threadIdx.x); i < listed; i += kSampleThreads) keys[i] = list[i];
  __syncthreads();
  if (!draw) {
    SelectCandidates(args, job, state, keys, counts);
  } else if (state.count <= kListCapacity) {
    SelectDraw(args, job, state, keys, scores, sums);
  }
}

}  // namespace

int64_t SampleScratchBytes(int64_t job_count, int64_t values) {
  Cutter cutter(nullptr);
  CutScratch(&cutter, job_count, values);
  return cutter.bytes();
}

void SampleJobsCuda(const CudaContext& context, const SampleArgs& args) {
  if (args.job_count == 0) return;
  PERGOLA_CHECK(args.values >= 0 && args.values <= kMaxSampleValues);
  Cutter cutter(context.workspace);
  const Scratch scratch = CutScratch(&cutter, args.job_count, args.values);
  PERGOLA_CHECK(cutter.bytes() <= context.workspace_bytes);
  const auto jobs = static_cast<unsigned>(args.job_count);
  const dim3 cut(static_cast<unsigned>(scratch.part_count), jobs);
  Launch(PartKernel, cut, kSampleThreads, 0, context, args, scratch);
  Launch(PrepareKernel, dim3(jobs), kSampleThreads, 0, context, args, scratch);
  if (!args.lists) return;
  Launch(CollectKernel, cut, kSampleThreads, 0, context, args, scratch);
  Launch(SelectKernel, dim3(jobs), kSampleThreads, 0, context, args, scratch);
}

}  // namespace pergola
