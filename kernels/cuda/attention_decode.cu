// Attention of single tokens: each row's keys are split into parts, a block each, whose results the
// last block to finish adds up (flash-decoding: Dao, Haziza, Massa and Sizov, 2023; the sums as in
// FlashAttention, arXiv:2205.14135, section 3.1).
//
// A block has one row, one head group and one part. All heads of the group go through the tensor
// cores together, padded to 16 (four warps take 16 keys of a tile each) or 64 (each warp takes 16
// heads), so that each key and value leaves memory once however many heads read it; with one head
// the padding costs nothing, the tensor cores being idle otherwise. Key tiles of 64 come through
// two to four stages of shared memory by asynchronous copies.
//
// Activations of another type than the cache's are multiplied as a sum of two numbers of its type
// (rounded value and rest), and so are the weights then: no precision of the query is lost.
//
// Roof: memory bandwidth, 4 * head_dim bytes per key of a row and KV head. Two blocks to a
// multiprocessor have 64 KiB and more under way (4.8 TB/s over 132 multiprocessors ask for 36 KiB
// in a microsecond).
#include <algorithm>

#include "kernels/cuda/attention_launch.cuh"
#include "kernels/cuda/attention_softmax.cuh"

namespace pergola {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpThreads;
constexpr int kMaxStages = 4;

// Of a block whose warps take kRowWarps different heads of 16.
template <int kDim, int kRowWarps>
struct DecodeShape {
  static constexpr int kRow = TileLayout<kDim>::kRow;
  static constexpr int kRows = 16 * kRowWarps;
  static constexpr int kKeyWarps = kWarps / kRowWarps;  // that share a tile's keys
  static constexpr int kWarpKeys = kKeyTile / kKeyWarps;
  static constexpr int64_t kStageBytes = 2 * TileLayout<kDim>::kTileBytes;
  static constexpr int64_t kQueryBytes = int64_t{2} * kRows * kRow;
};

struct DecodeParams {
  const int32_t* rows = nullptr;
  int32_t splits = 1;
  int32_t stages = 2;
  bool exact = false;      // queries and weights as sums of two
  float* sums = nullptr;   // [units, splits, largest_head_group, head_dim], a unit being a row and
                           // head group
  float* stats = nullptr;  // [units, splits, largest_head_group, 2]: largest score, total
  int32_t* done = nullptr;
};

// What the block computes: tiles [begin, end) of the keys [first_key, end_key).
struct Part {
  int row = 0, position = 0;
  int first_head = 0, heads = 0;
  int first_key = 0, end_key = 0;
  int begin = 0, end = 0;
  int parts = 0;  // of this row
};

// False: nothing to do.
__device__ bool FindPart(const AttentionParams& p, const DecodeParams& d, int unit, int split,
                         Part* part) {
  part->row = d.rows[unit / p.head_group_count];
  if (part->row < 0) return false;
  part->position = p.positions[part->row];
  if (part->position < 0) return false;
  const int group = unit % p.head_group_count;
  part->first_head = p.head_groups[2 * group];
  part->heads = p.head_groups[2 * group + 1];
  part->first_key = FirstKey(p, part->position);
  part->end_key = part->position + 1;
  const int first_tile = part->first_key / kKeyTile;
  const int tiles = part->position / kKeyTile - first_tile + 1;
  // By the row's own length: a short row in a graph made for long ones is spread out too.
  const int even = (tiles + d.splits - 1) / d.splits;
  constexpr int kLeast = static_cast<int>(kMinPartTiles);
  const int part_tiles = even < kLeast ? kLeast : even;
  part->parts = (tiles + part_tiles - 1) / part_tiles;
  part->begin = first_tile + split * part_tiles;
  part->end = first_tile + (tiles < (split + 1) * part_tiles ? tiles : (split + 1) * part_tiles);
  return split < part->parts;
}

// The group's queries in T, zeros for the padding; with `exact` the rests behind them.
template <typename T, int kDim, int kRows>
__device__ void LoadQueries(const AttentionParams& p, const Part& part, bool exact, T* queries) {
  using Layout = TileLayout<kDim>;
  const int64_t row = static_cast<int64_t>(part.row) * (p.heads + 2 * p.kv_heads);
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kDim; i += kThreads) {
    const int head = i / kDim, value = i % kDim;
    const float query = head < part.heads ? LoadAs(p.activation, p.qkv,
                                                   (row + part.first_head + head) * kDim + value)
                                          : 0.0F;
    const T rounded = FromFloat<T>(query);
    const int at = Layout::Offset(head, value / 8) + value % 8;
    queries[at] = rounded;
    if (exact) queries[kRows * Layout::kRow + at] = FromFloat<T>(query - ToFloat(rounded));
  }
}

// Waits until the oldest of stages - 1 copies is there.
__device__ inline void WaitForStage(int stages) {
  if (stages == 2) return CopyAsyncWait<0>();
  if (stages == 3) return CopyAsyncWait<1>();
  CopyAsyncWait<2>();
}

template <typename T, int kDim>
__device__ inline void CopyStage(const AttentionParams& p, const Part& part, int tile,
                                 const int64_t* offsets, T* stage) {
  const int first = part.first_key - tile * kKeyTile;
  const int end = part.end_key - tile * kKeyTile;
  CopyTile<T, kDim, kThreads>(stage, static_cast<const T*>(p.k_cache), offsets, first, end);
  CopyTile<T, kDim, kThreads>(stage + kKeyTile * TileLayout<kDim>::kRow,
                              static_cast<const T*>(p.v_cache), offsets, first, end);
}

// The first kMaxStages tiles' places in the cache, and the copies of the first stages - 1 of them.
template <typename T, int kDim>
__device__ void StartCopies(const AttentionParams& p, const Part& part, const int32_t* table,
                            int kv_head, int stage_count, int64_t (*offsets)[kParts], T* stages) {
  constexpr int kStage = 2 * kKeyTile * TileLayout<kDim>::kRow;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kMaxStages * kParts) {
    const int i = part.begin * kParts + thread;
    const int block = PartBlock(p, table, i, part.first_key, part.end_key);
    offsets[thread / kParts][thread % kParts] = PartOffset(p, block, kv_head, i);
  }
  __syncthreads();
  for (int i = 0; i < stage_count - 1; ++i) {
    if (part.begin + i < part.end) {
      CopyStage<T, kDim>(p, part, part.begin + i, offsets[i], stages + i * kStage);
    }
    CopyAsyncCommit();
  }
}

// The slopes of rows `head` and `head` + 8 of the group as exponents of two; 0 where there are
// none.
__device__ inline void LoadSlopes(const AttentionParams& p, const Part& part, int head,
                                  float (&slope)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool there = p.alibi_slopes != nullptr && head + 8 * i < part.heads;
    slope[i] = there ? p.alibi_slopes[part.first_head + head + 8 * i] * kLog2E : 0.0F;
  }
}

// ALiBi and the edges of the visible keys: scores become exponents of two if there are slopes.
// `back` is the query's distance to this thread's first key.
template <int kKeyTiles>
__device__ inline void Adjust(const AttentionParams& p, int back, const float (&slope)[2],
                              bool edge, float (&scores)[1][kKeyTiles][4]) {
#pragma unroll
  for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int distance = back - n * 8 - i % 2;
      float* score = &scores[0][n][i];
      if (p.alibi_slopes != nullptr) {
        *score = *score * (p.scale * kLog2E) - slope[i / 2] * static_cast<float>(distance);
      }
      // Seen are 0 .. window - 1; as unsigned those after the query fail too.
      if (edge && static_cast<uint32_t>(distance) >= static_cast<uint32_t>(p.window)) {
        *score = -INFINITY;
      }
    }
  }
}

// One tile for one warp: its 16 heads, its keys from `warp_key` on.
template <typename T, int kDim, int kRowWarps>
__device__ inline void AttendTile(const AttentionParams& p, const DecodeParams& d, const Part& part,
                                  const T* queries, const T* stage, int tile,
                                  const float (&slope)[2], Accumulator<kDim, 1>* acc) {
  using Shape = DecodeShape<kDim, kRowWarps>;
  constexpr int kKeyTiles = Shape::kWarpKeys / 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int warp_key = warp / kRowWarps * Shape::kWarpKeys;
  const int query_lane = RowLane<kDim>(warp % kRowWarps * 16, lane);
  const int key_lane = KeyLane<kDim>(warp_key, lane);
  const int row_lane = RowLane<kDim>(warp_key, lane);
  float scores[1][kKeyTiles][4];
  Clear(scores);
  AddProducts<T, kDim>(queries, query_lane, stage, key_lane, scores);
  if (d.exact) {
    AddProducts<T, kDim>(queries + Shape::kRows * Shape::kRow, query_lane, stage, key_lane, scores);
  }
  const int key = tile * kKeyTile;
  const bool edge = key < part.first_key || key + kKeyTile > part.end_key;
  if (edge || p.alibi_slopes != nullptr) {
    Adjust<kKeyTiles>(p, part.position - key - warp_key - lane % 4 * 2, slope, edge, scores);
  }
  Softmax(p.alibi_slopes != nullptr ? 1.0F : p.scale * kLog2E, scores, acc);
  const T* values = stage + kKeyTile * Shape::kRow;
  uint32_t weights[1][kKeyTiles / 2][4];
  PackWeights<T>(scores, weights);
  AddValues<T>(weights, values, row_lane, acc);
  if (d.exact) {
#pragma unroll
    for (int n = 0; n < kKeyTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[0][n][i] -= ToFloat(FromFloat<T>(scores[0][n][i]));
    }
    PackWeights<T>(scores, weights);
    AddValues<T>(weights, values, row_lane, acc);
  }
}

// The block's results in shared memory, by the warps that share a row's keys.
template <int kDim, int kRowWarps>
struct Shares {
  static constexpr int kRows = DecodeShape<kDim, kRowWarps>::kRows;
  float* sums = nullptr;     // [kKeyWarps][kRows][kDim]
  float* largest = nullptr;  // [kKeyWarps][kRows]
  float* total = nullptr;
};

template <int kDim, int kRowWarps>
__device__ void WriteShare(const Accumulator<kDim, 1>& acc, const Shares<kDim, kRowWarps>& to) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp / kRowWarps * to.kRows + warp % kRowWarps * 16 + half * 8 + lane / 4;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      float* at = to.sums + row * kDim + n * 8 + lane % 4 * 2;
      at[0] = acc.sum[0][n][2 * half];
      at[1] = acc.sum[0][n][2 * half + 1];
    }
    const float total = QuadSum(acc.total[0][half]);
    if (lane % 4 == 0) {
      to.largest[row] = acc.largest[0][half];
      to.total[row] = total;
    }
  }
}

// Adds the warps' shares up and writes the row's result, or, where the row has several parts, this
// one's.
template <int kDim, int kRowWarps>
__device__ void AddShares(const AttentionParams& p, const DecodeParams& d, const Part& part,
                          int64_t slot, const Shares<kDim, kRowWarps>& from) {
  constexpr int kKeyWarps = DecodeShape<kDim, kRowWarps>::kKeyWarps;
  for (int i = static_cast<int>(threadIdx.x); i < part.heads * kDim; i += kThreads) {
    const int head = i / kDim;
    float largest = -INFINITY;
#pragma unroll
    for (int w = 0; w < kKeyWarps; ++w) {
      largest = fmaxf(largest, from.largest[w * from.kRows + head]);
    }
    float sum = 0.0F, total = 0.0F;
#pragma unroll
    for (int w = 0; w < kKeyWarps; ++w) {
      const float shrink = ShrinkFactor(from.largest[w * from.kRows + head], largest);
      sum += shrink * from.sums[w * from.kRows * kDim + i];
      total += shrink * from.total[w * from.kRows + head];
    }
    if (part.parts == 1) {
      const int64_t row = static_cast<int64_t>(part.row) * p.heads + part.first_head;
      StoreAs(p.activation, p.out, row * kDim + i, sum / total);
      continue;
    }
    const int64_t place = slot * p.largest_head_group;
    d.sums[place * kDim + i] = sum;
    if (i % kDim == 0) {
      d.stats[(place + head) * 2] = largest;
      d.stats[(place + head) * 2 + 1] = total;
    }
  }
}

// True, for all threads, in the last block of the unit to come here; the others' parts are then
// visible. `shared` is shared memory.
__device__ bool IsLast(int32_t* done, int parts, int* shared) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *shared = atomicAdd(done, 1) == parts - 1 ? 1 : 0;
    if (*shared != 0) *done = 0;
  }
  __syncthreads();
  __threadfence();
  return *shared != 0;
}

// Adds up the parts of a unit, the first of which is in `slot`, and writes the row's result.
// `factors` is shared memory for [heads, parts].
template <int kDim>
__device__ void AddParts(const AttentionParams& p, const DecodeParams& d, const Part& part,
                         int64_t slot, float* factors) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const float* stats = d.stats + slot * p.largest_head_group * 2;
  const int stats_stride = p.largest_head_group * 2;
  for (int head = static_cast<int>(threadIdx.x) / kWarpThreads; head < part.heads; head += kWarps) {
    float largest = -INFINITY;
    for (int s = lane; s < part.parts; s += kWarpThreads) {
      largest = fmaxf(largest, stats[s * stats_stride + head * 2]);
    }
    largest = WarpMax(largest);
    float total = 0.0F;
    for (int s = lane; s < part.parts; s += kWarpThreads) {
      const float shrink = ShrinkFactor(stats[s * stats_stride + head * 2], largest);
      total += shrink * stats[s * stats_stride + head * 2 + 1];
      factors[head * part.parts + s] = shrink;
    }
    total = WarpSum(total);
    for (int s = lane; s < part.parts; s += kWarpThreads) factors[head * part.parts + s] /= total;
  }
  __syncthreads();
  const float* sums = d.sums + slot * p.largest_head_group * kDim;
  const int64_t row = static_cast<int64_t>(part.row) * p.heads + part.first_head;
  // Four values at a time and eight parts under way: this runs when all other blocks are done.
  for (int i = static_cast<int>(threadIdx.x) * 4; i < part.heads * kDim; i += kThreads * 4) {
    const float* factor = factors + i / kDim * part.parts;
    float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll 8
    for (int s = 0; s < part.parts; ++s) {
      const auto* from = sums + static_cast<int64_t>(s) * p.largest_head_group * kDim + i;
      const float4 values = *reinterpret_cast<const float4*>(from);
      sum.x += factor[s] * values.x;
      sum.y += factor[s] * values.y;
      sum.z += factor[s] * values.z;
      sum.w += factor[s] * values.w;
    }
    StoreAs(p.activation, p.out, row * kDim + i, sum.x);
    StoreAs(p.activation, p.out, row * kDim + i + 1, sum.y);
    StoreAs(p.activation, p.out, row * kDim + i + 2, sum.z);
    StoreAs(p.activation, p.out, row * kDim + i + 3, sum.w);
  }
}

template <typename T, int kDim, int kRowWarps>
__global__ void __launch_bounds__(kThreads) DecodeKernel(AttentionParams p, DecodeParams d) {
  BeginKernel();
  using Shape = DecodeShape<kDim, kRowWarps>;
  constexpr int kStage = Shape::kStageBytes / 2;  // values
  __shared__ int64_t offsets[kMaxStages][kParts];
  __shared__ float largest[Shape::kKeyWarps * Shape::kRows];
  __shared__ float total[Shape::kKeyWarps * Shape::kRows];
  __shared__ int last;
  T* stages = DynamicShared<T>();
  T* queries = stages + d.stages * kStage;
  const int thread = static_cast<int>(threadIdx.x);
  const int unit = static_cast<int>(blockIdx.x) / d.splits;
  const int split = static_cast<int>(blockIdx.x) % d.splits;
  Part part;
  if (!FindPart(p, d, unit, split, &part)) return;

  const int kv_head = p.kv_of_head[part.first_head];
  const int32_t* table = TableOfRow(p, part.row);
  // Place i of `offsets` is that of tile part.begin + i, then wraps around, as do the stages.
  StartCopies<T, kDim>(p, part, table, kv_head, d.stages, offsets, stages);
  LoadQueries<T, kDim, Shape::kRows>(p, part, d.exact, queries);
  const int warp_head = thread / kWarpThreads % kRowWarps * 16;
  float slope[2];
  LoadSlopes(p, part, warp_head + thread % kWarpThreads / 4, slope);
  const bool busy = warp_head < part.heads;
  Accumulator<kDim, 1> acc;
  Clear(&acc);
  int slot = 0;
  int next = part.begin + kMaxStages;  // whose offsets are not there yet
  for (int tile = part.begin; tile < part.end; ++tile, ++next) {
    WaitForStage(d.stages);
    __syncthreads();  // this tile is there, and nobody reads the one before it
    const int ahead = tile + d.stages - 1;
    if (ahead < part.end) {
      CopyStage<T, kDim>(p, part, ahead, offsets[(ahead - part.begin) % kMaxStages],
                         stages + (slot == 0 ? d.stages - 1 : slot - 1) * kStage);
    }
    CopyAsyncCommit();
    int next_block = -1;
    if (thread < kParts) {
      next_block = PartBlock(p, table, next * kParts + thread, part.first_key, part.end_key);
    }
    if (busy) {
      AttendTile<T, kDim, kRowWarps>(p, d, part, queries, stages + slot * kStage, tile, slope,
                                     &acc);
    }
    slot = slot + 1 == d.stages ? 0 : slot + 1;
    // Place (tile - begin) % kMaxStages: copied from before the last barrier.
    if (thread < kParts) {
      offsets[(tile - part.begin) % kMaxStages][thread] =
          PartOffset(p, next_block, kv_head, next * kParts + thread);
    }
  }
  CopyAsyncWait<0>();
  __syncthreads();

  Shares<kDim, kRowWarps> shares;
  shares.sums = reinterpret_cast<float*>(stages);
  shares.largest = largest;
  shares.total = total;
  if (busy) WriteShare(acc, shares);
  __syncthreads();
  const int64_t first_slot = static_cast<int64_t>(unit) * d.splits;
  AddShares(p, d, part, first_slot + split, shares);
  if (part.parts == 1 || !IsLast(d.done + unit, part.parts, &last)) return;
  AddParts<kDim>(p, d, part, first_slot, shares.sums);
}

// Stages that leave room for two blocks on a multiprocessor, at least two.
int StagesFor(int compute_capability, int64_t stage_bytes, int64_t query_bytes) {
  // A block's own reserve and static arrays.
  constexpr int64_t kBeside = 2 << 10;
  const int64_t room = (SharedLimit(compute_capability) / 2 - kBeside - query_bytes) / stage_bytes;
  return static_cast<int>(room < 2 ? 2 : room > kMaxStages ? kMaxStages : room);
}

template <typename T, int kDim, int kRowWarps>
bool LaunchDecode(const CudaContext& context, const AttentionParams& p, DecodeParams d,
                  const AttentionWork& work) {
  using Shape = DecodeShape<kDim, kRowWarps>;
  static_assert(Shape::kStageBytes >= int64_t{4} * kWarps * 16 * kDim, "shares fit a stage");
  static_assert(2 * Shape::kStageBytes >= 4 * kAttentionGroupHeads * kMaxDecodeParts,
                "factors fit two stages");
  const int64_t query_bytes = Shape::kQueryBytes * (d.exact ? 2 : 1);
  d.stages = StagesFor(context.compute_capability, Shape::kStageBytes, query_bytes);
  const int64_t shared = d.stages * Shape::kStageBytes + query_bytes;
  if (shared + 1024 > SharedLimit(context.compute_capability)) return false;
  const int64_t units = work.decode_row_count * p.head_group_count;
  const int64_t context_keys = std::min<int64_t>(work.longest_context, p.window);
  // The keys of a window may begin and end within a tile.
  const int64_t tiles = context_keys / kKeyTile + 2;
  const int64_t parts = DecodeParts(context.multiprocessors, units, tiles);
  d.splits = static_cast<int32_t>(parts);
  if (parts > 1) {
    const int64_t places = units * parts * p.largest_head_group;
    PERGOLA_CHECK(places * (kDim + 2) * 4 <= context.workspace_bytes);
    PERGOLA_CHECK(work.decode_done != nullptr);
    d.sums = reinterpret_cast<float*>(context.workspace);
    d.stats = d.sums + places * kDim;
  }
  PERGOLA_CHECK(units * parts <= INT32_MAX);
  Launch(DecodeKernel<T, kDim, kRowWarps>, dim3(static_cast<unsigned>(units * parts)), kThreads,
         shared, context, p, d);
  return true;
}

template <typename T, int kDim>
bool LaunchForGroups(const CudaContext& context, const AttentionParams& p, const DecodeParams& d,
                     const AttentionWork& work) {
  if (p.largest_head_group <= 16) return LaunchDecode<T, kDim, 1>(context, p, d, work);
  return LaunchDecode<T, kDim, 4>(context, p, d, work);
}

template <typename T>
bool LaunchForDim(const CudaContext& context, const AttentionParams& p, const DecodeParams& d,
                  const AttentionWork& work) {
  switch (p.head_dim) {
    case 64:
      return LaunchForGroups<T, 64>(context, p, d, work);
    case 80:
      return LaunchForGroups<T, 80>(context, p, d, work);
    case 96:
      return LaunchForGroups<T, 96>(context, p, d, work);
    case 128:
      return LaunchForGroups<T, 128>(context, p, d, work);
    case 256:
      return LaunchForGroups<T, 256>(context, p, d, work);
    default:
      return false;
  }
}

}  // namespace

bool TryDecode(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
               const AttentionWork& work) {
  DecodeParams d;
  d.rows = work.decode_rows;
  d.done = work.decode_done;
  d.exact = p.activation != kv_dtype;
  if (kv_dtype == DType::kF16) return LaunchForDim<__half>(context, p, d, work);
  if (kv_dtype == DType::kBF16 && context.compute_capability >= 80) {
    return LaunchForDim<__nv_bfloat16>(context, p, d, work);
  }
  return false;
}

}  // namespace pergola
