// Sums over the ranks of a stage through memory that all of its GPUs reach (peer_memory.h), with
// what follows a sum in a decoder: adding it to the residual stream, and a norm.
//
// A decode step sums messages of a few KiB to some hundred KiB, twice per layer. Their time is
// latency: launches, signals between GPUs, round trips. So one launch does it all. A block copies
// its rows of the message to its rank's buffer, tells the same block of every peer, waits for all
// of them, and then either
//   one shot:  reads its rows of all ranks' buffers and adds them in rank order;
//   two shots: does so for its rank's slice of each row only, puts the sums into its buffer, meets
//              its peers again, and reads each slice from the rank that has summed it.
// With n ranks and a message of S bytes, a GPU reads (n - 1) S in one shot, 2 (n - 1) / n S in two,
// which cost a second exchange of signals. Sums are formed in f32 in rank order and rounded to the
// message's type, by every rank in one shot and by one in two: the same bits on all ranks and from
// both. (The scheme is that of TensorRT-LLM's and vLLM's custom all-reduce; the round trip of one
// signal and one read is the least that peers can do who do not write into each other's buffers.)
//
// Signals. buffers[r].flags[b][p] is rank p's word to block b of rank r: 2 e + 1 once the rows of
// its launch e are in its buffer, 2 e + 2 once its slices are. It only grows, so nothing is reset;
// e counts launches in device memory, so a captured launch may be replayed. Release and acquire at
// system scope make the data visible with the word.
//
// Reuse. Launch e uses half e % 2 of the buffers. When it begins on a rank (what an early launch
// does before it awaits the one before does not count), launch e - 1 is over there, so that block 0
// of every peer had begun launch e - 1, so that the peers' launches e - 2 are over: nobody reads
// that half any more. All blocks of all launches count, also those without rows: the counts agree
// whatever the messages were.
//
// Residency. A block waits for the peers' block of the same number. Were not all blocks of all
// ranks resident at once, rank 0 could wait in a block that rank 1 has not begun since others of
// its blocks wait for blocks that rank 0 has not begun. So a grid has at most as many blocks as the
// multiprocessors hold (PeerSpace::blocks, the same on all ranks).
//
// A peer that does not come: waits end after PeerSpace::wait_ns. The rank that was waited for is
// written to host memory, where the stream finds it at its next synchronisation; the launches after
// that do nothing, so that the stream drains.
//
// Roof: the links. 16-byte loads, one per rank in flight per thread and step. A row has one block:
// with few rows few multiprocessors read, and the latency of their loads, not the link, is the
// time.
#include "kernels/cuda/peer_reduce.h"

#include <algorithm>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/norm_row.cuh"
#include "kernels/cuda/types.cuh"

namespace pergola {
namespace {

constexpr int kPeerThreads = 512;
// On a multiprocessor at least (peer_memory.cc counts on it): with two, half the registers would be
// left, too few for the loads in flight.
constexpr int kResidentBlocks = 1;
// Bytes that the links move into a GPU in the time of an exchange of signals: from some 2 us and
// 300 GB/s. To be measured (peer_reduce_bench prints both ways for every size).
constexpr int64_t kSignalBytes = 600'000;

enum class After : uint8_t { kStore, kAdd, kRmsNorm, kLayerNorm };

template <typename A>
struct PeerJob {
  PeerSpace space;
  A* part;         // this rank's, [values]; for kStore the sum's place too
  int64_t values;  // rows of row_values; the last may be shorter where no norm follows
  int row_values;
  int slice_values;  // of a whole row's, in two shots; 0: one shot
  float* x;          // [values], the residual stream
  NormWeightsOfRow norm;
  A* y;  // [values]
};

__device__ inline uint64_t* Flag(uint8_t* buffer, int block, int rank) {
  return reinterpret_cast<uint64_t*>(buffer) + block * kMostPeers + rank;
}

template <typename A>
__device__ A* Parts(const PeerSpace& space, int rank, int half) {
  return reinterpret_cast<A*>(space.buffers[rank] + kPeerFlagBytes + half * space.most_bytes);
}

template <typename A>
__device__ A* Slices(const PeerSpace& space, int rank, int half) {
  return reinterpret_cast<A*>(space.buffers[rank] + kPeerFlagBytes + 2 * space.most_bytes +
                              half * space.slice_bytes);
}

template <typename A>
__device__ int LengthOf(const PeerJob<A>& job, int64_t row) {
  const int64_t left = job.values - row * job.row_values;
  return left < job.row_values ? static_cast<int>(left) : job.row_values;
}

// Whole 16-byte pieces past the caches; else single values, which the acquire has made visible.
template <typename A, int kStep>
__device__ Pack<A, kStep> LoadFromPeer(const A* from) {
  if constexpr (sizeof(Pack<A, kStep>) == 16) {
    union {
      uint4 raw;
      Pack<A, kStep> pack;
    };
    raw = LoadPeer16(from);
    return pack;
  } else {
    return *reinterpret_cast<const Pack<A, kStep>*>(from);
  }
}

// values = the ranks' values at `offset` of their parts, added in rank order.
template <typename A, int kStep>
__device__ void SumParts(const PeerSpace& space, int half, int64_t offset, float (&values)[kStep]) {
  Pack<A, kStep> packs[kMostPeers];
#pragma unroll
  for (int rank = 0; rank < kMostPeers; ++rank) {
    if (rank < space.ranks) {
      packs[rank] = LoadFromPeer<A, kStep>(Parts<A>(space, rank, half) + offset);
    }
  }
#pragma unroll
  for (int k = 0; k < kStep; ++k) values[k] = ToFloat(packs[0].values[k]);
#pragma unroll
  for (int rank = 1; rank < kMostPeers; ++rank) {
    if (rank >= space.ranks) continue;
#pragma unroll
    for (int k = 0; k < kStep; ++k) values[k] += ToFloat(packs[rank].values[k]);
  }
}

// False, and reported, if the flag does not get there in time.
__device__ inline bool WaitFor(const PeerSpace& space, const uint64_t* flag, uint64_t value,
                               int rank) {
  if (LoadAcquireSystem(flag) >= value) return true;
  const uint64_t begin = DeviceNanoseconds();
  while (LoadAcquireSystem(flag) < value) {
    if (DeviceNanoseconds() - begin > space.wait_ns) {
      StoreReleaseSystem(space.lost, 1);
      StoreReleaseSystem(space.report, static_cast<uint64_t>(rank) + 1);
      return false;
    }
    SpinPause();
  }
  return true;
}

// Tells every peer's block of this number that this one has come to `value` and waits for theirs.
// All that the block wrote before is visible to those it tells.
__device__ inline bool Meet(const PeerSpace& space, uint64_t value) {
  const int block = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x);
  bool came = true;
  __syncthreads();
  if (lane < kWarpThreads) {
    if (lane < space.ranks) StoreReleaseSystem(Flag(space.buffers[lane], block, space.rank), value);
    __syncwarp();  // no lane waits before all have told
    if (lane < space.ranks) {
      came = WaitFor(space, Flag(space.buffers[space.rank], block, lane), value, lane);
    }
  }
  return __syncthreads_and(came ? 1 : 0) != 0;
}

// The block's rows of the message into the rank's buffer.
template <typename A, int kStep>
__device__ void CopyPart(const PeerJob<A>& job, int half, int64_t row) {
  const A* from = job.part + row * job.row_values;
  A* to = Parts<A>(job.space, job.space.rank, half) + row * job.row_values;
  const int length = LengthOf(job, row);
  for (int i = threadIdx.x * kStep; i < length; i += kPeerThreads * kStep) {
    *reinterpret_cast<Pack<A, kStep>*>(to + i) = *reinterpret_cast<const Pack<A, kStep>*>(from + i);
  }
}

// This rank's slice of a row, summed, into its buffer.
template <typename A, int kStep>
__device__ void SumSlice(const PeerJob<A>& job, int half, int64_t row) {
  const int slice = job.slice_values, first = job.space.rank * slice;
  const int length = min(slice, LengthOf(job, row) - first);
  A* to = Slices<A>(job.space, job.space.rank, half) + row * slice;
  for (int i = threadIdx.x * kStep; i < length; i += kPeerThreads * kStep) {
    float values[kStep];
    SumParts<A>(job.space, half, row * job.row_values + first + i, values);
    StoreFloats(values, to + i);
  }
}

// The sum of a row's values i .. i + kStep - 1, rounded to A.
template <typename A, int kStep>
__device__ void LoadSum(const PeerJob<A>& job, int half, int64_t row, int i,
                        float (&values)[kStep]) {
  if (job.slice_values > 0) {
    const int slice = job.slice_values, rank = i / slice;
    const A* from = Slices<A>(job.space, rank, half) + row * slice + (i - rank * slice);
    const Pack<A, kStep> pack = LoadFromPeer<A, kStep>(from);
#pragma unroll
    for (int k = 0; k < kStep; ++k) values[k] = ToFloat(pack.values[k]);
    return;
  }
  SumParts<A>(job.space, half, row * job.row_values + i, values);
#pragma unroll
  for (int k = 0; k < kStep; ++k) values[k] = ToFloat(FromFloat<A>(values[k]));
}

template <typename A, int kStep, After kAfter>
__device__ void FinishRow(const PeerJob<A>& job, int half, int64_t row, float* scratch) {
  constexpr bool kLayer = kAfter == After::kLayerNorm;
  const int64_t begin = row * job.row_values;
  const int length = LengthOf(job, row);
  float sum = 0;
  for (int i = threadIdx.x * kStep; i < length; i += kPeerThreads * kStep) {
    float values[kStep];
    LoadSum(job, half, row, i, values);
    if constexpr (kAfter == After::kStore) {
      StoreFloats(values, job.part + begin + i);
    } else {
      float stream[kStep];
      LoadFloats(job.x + begin + i, stream);
#pragma unroll
      for (int k = 0; k < kStep; ++k) stream[k] += values[k];
      StoreFloats(stream, job.x + begin + i);
      if constexpr (kAfter != After::kAdd) sum += NormTerm<kLayer>(stream);
    }
  }
  if constexpr (kAfter == After::kRmsNorm || kAfter == After::kLayerNorm) {
    NormaliseRow<kLayer, kPeerThreads, kStep>(job.norm, job.x + begin, length, sum, scratch,
                                              job.y + begin);
  }
}

template <typename A, int kStep, After kAfter>
__global__ void __launch_bounds__(kPeerThreads, kResidentBlocks)
    PeerKernel(const __grid_constant__ PeerJob<A> job) {
  BeginKernel();  // launch e - 1 is over from here on
  __shared__ float scratch[32];
  const PeerSpace& space = job.space;
  const int64_t rows = (job.values + job.row_values - 1) / job.row_values;
  const uint64_t epoch = space.epochs[blockIdx.x];
  const int half = static_cast<int>(epoch % 2);
  const bool lost = threadIdx.x == 0 && LoadAcquireSystem(space.lost) != 0;
  if (__syncthreads_or(lost ? 1 : 0) != 0) return;
  if (blockIdx.x < rows) {
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) CopyPart<A, kStep>(job, half, row);
    if (!Meet(space, 2 * epoch + 1)) return;
    if (job.slice_values > 0) {
      for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        SumSlice<A, kStep>(job, half, row);
      }
      if (!Meet(space, 2 * epoch + 2)) return;
    }
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
      FinishRow<A, kStep, kAfter>(job, half, row, scratch);
    }
  }
  if (threadIdx.x == 0) space.epochs[blockIdx.x] = epoch + 1;
}

bool InSixteens(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// Values per rank of a row's slices if the message goes in two shots, else 0.
template <typename A>
int SliceValues(const PeerJob<A>& job, int step, PeerShots shots) {
  const PeerSpace& space = job.space;
  const int64_t bytes = job.values * static_cast<int64_t>(sizeof(A));
  const int64_t read_in_one = (space.ranks - 1) * bytes;
  const int64_t read_in_two = 2 * (space.ranks - 1) * bytes / space.ranks;
  const bool two = shots == PeerShots::kAuto ? read_in_one > read_in_two + kSignalBytes
                                             : shots == PeerShots::kTwo;
  const int pieces = (job.row_values + step - 1) / step;
  const int slice = (pieces + space.ranks - 1) / space.ranks * step;
  const int64_t rows = (job.values + job.row_values - 1) / job.row_values;
  // Slices of very short rows are hardly shorter than the rows.
  const bool fits = rows * slice * static_cast<int64_t>(sizeof(A)) <= space.slice_bytes;
  return two && fits ? slice : 0;
}

template <After kAfter, typename A>
void LaunchPeer(const CudaContext& context, PeerJob<A> job, PeerShots shots) {
  constexpr int kStep = 16 / sizeof(A);
  const PeerSpace& space = job.space;
  PERGOLA_CHECK(job.values * static_cast<int64_t>(sizeof(A)) <= space.most_bytes);
  constexpr bool kNorm = kAfter == After::kRmsNorm || kAfter == After::kLayerNorm;
  const bool pieces = (kNorm ? job.row_values : job.values) % kStep == 0 && InSixteens(job.part) &&
                      InSixteens(job.x) && InSixteens(job.y) && InSixteens(job.norm.weight) &&
                      InSixteens(job.norm.bias);
  if (!kNorm) {  // a row for every block
    const int64_t even = (job.values + space.blocks - 1) / space.blocks;
    job.row_values = static_cast<int>((even + kStep - 1) / kStep * kStep);
  }
  job.slice_values = SliceValues(job, pieces ? kStep : 1, shots);
  const auto kernel = pieces ? PeerKernel<A, kStep, kAfter> : PeerKernel<A, 1, kAfter>;
  LaunchResident(kernel, space.blocks, kPeerThreads, context, job);
}

template <After kAfter>
void LaunchNorm(const CudaContext& context, const PeerSpace& space, const RmsNormArgs& args,
                const float* bias, PeerShots shots) {
  if (args.x.dim(0) == 0) return;
  PERGOLA_CHECK(args.y.dtype() == args.residual.dtype());
  WithFloatType(args.y.dtype(), [&](auto type) {
    using A = decltype(type);
    PeerJob<A> job = {};
    job.space = space;
    job.part = args.residual.template as<A>();
    job.values = args.x.values();
    job.row_values = static_cast<int>(args.x.dim(1));
    job.x = args.x.f32();
    job.norm = {args.weight, bias, args.epsilon};
    job.y = args.y.template as<A>();
    LaunchPeer<kAfter>(context, job, shots);
  });
}

}  // namespace

void PeerSumCuda(const CudaContext& context, const PeerSpace& space, const Tensor& x,
                 PeerShots shots) {
  if (x.values() == 0) return;
  WithFloatType(x.dtype(), [&](auto type) {
    using A = decltype(type);
    PeerJob<A> job = {};
    job.space = space;
    job.part = x.as<A>();
    job.values = x.values();
    LaunchPeer<After::kStore>(context, job, shots);
  });
}

void PeerSumAddCuda(const CudaContext& context, const PeerSpace& space, const AddArgs& args,
                    PeerShots shots) {
  if (args.x.values() == 0) return;
  WithFloatType(args.y.dtype(), [&](auto type) {
    using A = decltype(type);
    PeerJob<A> job = {};
    job.space = space;
    job.part = args.y.template as<A>();
    job.values = args.x.values();
    job.x = args.x.f32();
    LaunchPeer<After::kAdd>(context, job, shots);
  });
}

void PeerSumNormCuda(const CudaContext& context, const PeerSpace& space, const RmsNormArgs& args,
                     PeerShots shots) {
  LaunchNorm<After::kRmsNorm>(context, space, args, nullptr, shots);
}

void PeerSumNormCuda(const CudaContext& context, const PeerSpace& space, const LayerNormArgs& args,
                     PeerShots shots) {
  const RmsNormArgs norm = {args.x, args.residual, args.weight, args.epsilon, args.y};
  LaunchNorm<After::kLayerNorm>(context, space, norm, args.bias, shots);
}

}  // namespace pergola
