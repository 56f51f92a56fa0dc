// Attention of prompts: FlashAttention-2 (Dao, arXiv:2307.08691, algorithm 1) over the paged cache.
//
// A block has 128 queries (64 of heads of 256): the rows of one tile of a sequence times the heads
// of one head group, row by row, so that heads that read one KV head share its keys and the block
// spans few positions. Each of its four warps has 32 of them (16 of heads of 256) with sums and
// scores in registers, and takes every key tile of 64 through shared memory: with 32 queries per
// warp the tensor cores, not shared memory, are the limit (an operand read serves two products).
// Keys and values are gathered through the block table, the values of a tile while its scores are
// computed, the keys of the next while its values are added. Tiles that no query of a warp sees
// (later than it, or before its window) are skipped; only tiles at an edge are masked.
//
// Where there are fewer such blocks than places for them, several share a block's keys, and a
// second kernel adds up their sums (attention_prefill_parts.cu).
//
// Roof: tensor core arithmetic, 4 * head_dim operations per visible (query, key). K and V come from
// L2: a block reads 4 * head_dim bytes per key for 128 queries, 128 operations per byte.
#include <algorithm>

#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/attention_softmax.cuh"

namespace pergola {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpThreads;

template <int kDim, int kRowTiles>
struct PrefillShape {
  static constexpr int kWarpQueries = 16 * kRowTiles;
  static constexpr int kQueries = kWarps * kWarpQueries;
  static constexpr int kRow = TileLayout<kDim>::kRow;
  static constexpr int64_t kSharedBytes = int64_t{2} * (kQueries + 2 * kKeyTile) * kRow;
};

// Starts the copy of the block's queries, zeros for those it lacks.
template <typename T, int kDim, int kQueries>
__device__ void CopyQueries(const AttentionParams& p, const QueryBlock& block, T* shared) {
  using Layout = TileLayout<kDim>;
  const auto* qkv = static_cast<const T*>(p.qkv);
  const int64_t row_values = static_cast<int64_t>(p.heads + 2 * p.kv_heads) * kDim;
  for (int i = static_cast<int>(threadIdx.x); i < kQueries * Layout::kChunks; i += kThreads) {
    const int q = i / Layout::kChunks, chunk = i % Layout::kChunks;
    const bool valid = q < block.count;
    const int query = valid ? block.first_query + q : 0;
    const int64_t row = block.first_row + query / block.heads;
    const int64_t head = block.first_head + query % block.heads;
    CopyAsync16(shared + Layout::Offset(q, chunk), qkv + row * row_values + head * kDim + chunk * 8,
                valid);
  }
}

// scores = scores * factor + slope * (key - position), for ALiBi. `position` and `slope` are those
// of the warp's queries, `key` is the tile's first.
template <int kRowTiles>
__device__ inline void AddSlopes(float (&scores)[kRowTiles][kKeyTile / 8][4], const int* position,
                                 const float* slope, int key, float factor, int lane) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = m * 16 + i / 2 * 8 + lane / 4;
      const float slope_here = slope[row];
      const int distance = key + lane % 4 * 2 + i % 2 - position[row];
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
        scores[m][n][i] =
            scores[m][n][i] * factor + slope_here * static_cast<float>(distance + n * 8);
      }
    }
  }
}

// Minus infinity for the keys that a query does not see.
template <int kRowTiles>
__device__ inline void Mask(float (&scores)[kRowTiles][kKeyTile / 8][4], const int* position,
                            int window, int key, int lane) {
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Keys back from the query: seen are 0 .. window - 1, as unsigned also those after it fail.
      const int back = position[m * 16 + i / 2 * 8 + lane / 4] - key - lane % 4 * 2 - i % 2;
#pragma unroll
      for (int n = 0; n < kKeyTile / 8; ++n) {
        if (static_cast<uint32_t>(back - n * 8) >= static_cast<uint32_t>(window)) {
          scores[m][n][i] = -INFINITY;
        }
      }
    }
  }
}

// Divides by the totals and writes the warp's queries, through its rows of shared memory so that
// whole chunks go out.
template <typename T, int kDim, int kRowTiles>
__device__ void WriteOut(const AttentionParams& p, const QueryBlock& block, int warp_query,
                         const Accumulator<kDim, kRowTiles>& acc, T* queries, int lane) {
  using Layout = TileLayout<kDim>;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float inverse = 1.0F / QuadSum(acc.total[m][half]);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const uint32_t pair =
            PackPair<T>(acc.sum[m][n][2 * half] * inverse, acc.sum[m][n][2 * half + 1] * inverse);
        memcpy(queries + Layout::Offset(m * 16 + half * 8 + lane / 4, n) + lane % 4 * 2, &pair,
               sizeof(pair));
      }
    }
  }
  __syncwarp();
  auto* out = static_cast<T*>(p.out);
  for (int i = lane; i < 16 * kRowTiles * Layout::kChunks; i += kWarpThreads) {
    const int q = i / Layout::kChunks, chunk = i % Layout::kChunks;
    if (warp_query + q >= block.count) break;
    const int query = block.first_query + warp_query + q;
    const int64_t row = block.first_row + query / block.heads;
    const int64_t head = block.first_head + query % block.heads;
    *reinterpret_cast<uint4*>(out + (row * p.heads + head) * kDim + chunk * 8) =
        *reinterpret_cast<const uint4*>(queries + Layout::Offset(q, chunk));
  }
}

// Writes the warp's sums and their scale, not yet divided, for the kernel that adds up the parts.
template <int kDim, int kRowTiles>
__device__ void WritePart(const PrefillGrid& grid, int queries, int warp_query,
                          const Accumulator<kDim, kRowTiles>& acc, int lane) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * grid.queries;
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = warp_query + m * 16 + half * 8 + lane / 4;
      const float total = QuadSum(acc.total[m][half]);
      if (query >= queries) continue;
      if (lane % 4 == 0) grid.stats[first + query] = make_float2(acc.largest[m][half], total);
      float* to = grid.sums + (first + query) * kDim + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        *reinterpret_cast<float2*>(to + n * 8) =
            make_float2(acc.sum[m][n][2 * half], acc.sum[m][n][2 * half + 1]);
      }
    }
  }
}

// Positions, and slopes as exponents of two, of the block's queries; those it lacks repeat its
// last.
template <int kQueries>
__device__ void DescribeQueries(const AttentionParams& p, const QueryBlock& block, int row_position,
                                int* position, float* slope) {
  for (int q = static_cast<int>(threadIdx.x); q < kQueries; q += kThreads) {
    const int query = block.first_query + (q < block.count ? q : block.count - 1);
    position[q] = row_position + query / block.heads;
    slope[q] = p.alibi_slopes == nullptr
                   ? 0.0F
                   : p.alibi_slopes[block.first_head + query % block.heads] * kLog2E;
  }
}

// A warp's queries, and where its lanes read.
struct WarpQueries {
  const int* position = nullptr;
  const float* slope = nullptr;
  int first = 0, last = 0;         // positions
  int begin_key = 0, end_key = 0;  // that some query sees; none if there is no query
  int query_lane = 0, key_lane = 0;
};

// The `count` queries from `query` of the block on.
template <int kDim>
__device__ inline WarpQueries FindWarp(const AttentionParams& p, int query, int count,
                                       const int* position, const float* slope) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  WarpQueries warp;
  warp.position = position + query;
  warp.slope = slope + query;
  if (count > 0) {
    warp.first = warp.position[0];
    warp.last = warp.position[count - 1];
    warp.begin_key = FirstKey(p, warp.first);
    warp.end_key = warp.last + 1;
  }
  warp.query_lane = RowLane<kDim>(query, lane);
  warp.key_lane = KeyLane<kDim>(0, lane);
  return warp;
}

// The weights of a warp's queries for the tile of keys from position `key` on.
template <typename T, int kDim, int kRowTiles>
__device__ inline void WeighTile(const AttentionParams& p, const WarpQueries& warp,
                                 const T* queries, const T* keys, int key,
                                 Accumulator<kDim, kRowTiles>* acc,
                                 uint32_t (&weights)[kRowTiles][kKeyTile / 16][4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  float scores[kRowTiles][kKeyTile / 8][4];
  float factor = p.scale * kLog2E;
  Clear(scores);
  AddProducts<T, kDim>(queries, warp.query_lane, keys, warp.key_lane, scores);
  if (p.alibi_slopes != nullptr) {
    AddSlopes<kRowTiles>(scores, warp.position, warp.slope, key, factor, lane);
    factor = 1.0F;
  }
  if (key + kKeyTile - 1 > warp.first || warp.last - key >= p.window) {
    Mask<kRowTiles>(scores, warp.position, p.window, key, lane);
  }
  Softmax(factor, scores, acc);
  PackWeights<T>(scores, weights);
}

template <typename T, int kDim, int kRowTiles>
__global__ void __launch_bounds__(kThreads)
    PrefillKernel(const __grid_constant__ AttentionParams p,
                  const __grid_constant__ PrefillGrid grid) {
  BeginKernel();
  using Shape = PrefillShape<kDim, kRowTiles>;
  __shared__ int64_t offsets[2][kParts];  // of the tile in hand and the next
  __shared__ int position[Shape::kQueries];
  __shared__ float slope[Shape::kQueries];
  T* queries = DynamicShared<T>();
  T* keys = queries + Shape::kQueries * Shape::kRow;
  T* values = keys + kKeyTile * Shape::kRow;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpThreads;
  const int warp_query = thread / kWarpThreads * Shape::kWarpQueries;
  const QueryBlock block = FindQueries(p, grid, static_cast<int>(blockIdx.x) / grid.splits);
  if (block.count <= 0) return;
  const UnitKeys unit = FindKeys(p, grid, block);
  const int part = static_cast<int>(blockIdx.x) % grid.splits;
  if (part >= unit.parts) return;
  const int kv_head = p.kv_of_head[block.first_head];
  const int32_t* table = TableOfRow(p, block.first_row);
  const int row_position = p.positions[block.first_row];
  const int first = unit.first, end = unit.end;
  const int first_tile = unit.first_tile + part * unit.part_tiles;
  int tile = first_tile - 1 + min(unit.part_tiles, unit.tiles - part * unit.part_tiles);

  CopyQueries<T, kDim, Shape::kQueries>(p, block, queries);
  DescribeQueries<Shape::kQueries>(p, block, row_position, position, slope);
  if (thread < kParts) {
    const int keys_part = tile * kParts + thread;
    const int keys_block = PartBlock(p, table, keys_part, first, end);
    offsets[tile % 2][thread] = PartOffset(p, keys_block, kv_head, keys_part);
  }
  __syncthreads();
  const auto* k_cache = static_cast<const T*>(p.k_cache);
  const auto* v_cache = static_cast<const T*>(p.v_cache);
  CopyTile<T, kDim, kThreads>(keys, k_cache, offsets[tile % 2], first - tile * kKeyTile,
                              end - tile * kKeyTile);
  CopyAsyncCommit();

  const WarpQueries warp = FindWarp<kDim>(
      p, warp_query, warp_query < block.count ? Shape::kWarpQueries : 0, position, slope);
  const int row_lane = RowLane<kDim>(0, lane);
  Accumulator<kDim, kRowTiles> acc;
  Clear(&acc);
  for (; tile >= first_tile; --tile) {
    const int key = tile * kKeyTile;
    const bool seen = key < warp.end_key && key + kKeyTile > warp.begin_key;
    CopyAsyncWait<0>();
    __syncthreads();  // this tile's keys are there, and nobody reads the values of the last
    CopyTile<T, kDim, kThreads>(values, v_cache, offsets[tile % 2], first - key, end - key);
    CopyAsyncCommit();
    const int next_part = (tile - 1) * kParts + thread;
    const int next_block =
        thread < kParts && tile > first_tile ? PartBlock(p, table, next_part, first, end) : -1;
    uint32_t weights[kRowTiles][kKeyTile / 16][4];
    if (seen) WeighTile<T, kDim, kRowTiles>(p, warp, queries, keys, key, &acc, weights);
    if (thread < kParts) {
      offsets[(tile + 1) % 2][thread] = PartOffset(p, next_block, kv_head, next_part);
    }
    CopyAsyncWait<0>();
    __syncthreads();  // this tile's values are there, and nobody reads its keys
    if (tile > first_tile) {
      CopyTile<T, kDim, kThreads>(keys, k_cache, offsets[(tile + 1) % 2], first - key + kKeyTile,
                                  end - key + kKeyTile);
    }
    CopyAsyncCommit();
    if (seen) AddValues<T>(weights, values, row_lane, &acc);
  }
  if (grid.splits > 1) {
    return WritePart<kDim, kRowTiles>(grid, block.count, warp_query, acc, lane);
  }
  T* own = queries + warp_query * Shape::kRow;
  if (warp_query < block.count) WriteOut<T, kDim, kRowTiles>(p, block, warp_query, acc, own, lane);
}

template <typename T, int kDim, int kRowTiles>
bool LaunchPrefill(const CudaContext& context, const AttentionParams& p,
                   const AttentionWork& work) {
  using Shape = PrefillShape<kDim, kRowTiles>;
  // Beside it there are the positions and slopes.
  if (Shape::kSharedBytes + 2048 > SharedLimit(context.compute_capability)) return false;
  PrefillGrid grid;
  grid.tiles = work.prefill_tiles;
  grid.tile_count = static_cast<int>(work.prefill_tile_count);
  grid.queries = Shape::kQueries;
  grid.chunks = static_cast<int>((kAttentionTileRows * p.largest_head_group + Shape::kQueries - 1) /
                                 Shape::kQueries);
  const int64_t units = work.prefill_tile_count * grid.chunks * p.head_group_count;
  const int64_t keys = std::min<int64_t>(work.longest_prompt, int64_t{p.window} + grid.queries);
  const int64_t parts = PrefillParts(context.multiprocessors, units, keys / kKeyTile);
  // With less workspace in fewer parts.
  const int64_t places = context.workspace_bytes / (units * grid.queries * (kDim + 2) * 4);
  grid.splits = static_cast<int>(std::max<int64_t>(std::min(parts, places), 1));
  const int64_t blocks = units * grid.splits;
  PERGOLA_CHECK(blocks <= INT32_MAX);
  if (grid.splits > 1) {
    grid.sums = reinterpret_cast<float*>(context.workspace);
    grid.stats = reinterpret_cast<float2*>(grid.sums + blocks * grid.queries * kDim);
  }
  Launch(PrefillKernel<T, kDim, kRowTiles>, dim3(static_cast<unsigned>(blocks)), kThreads,
         Shape::kSharedBytes, context, p, grid);
  if (grid.splits > 1) SumPrefillParts(context, p, grid, units);
  return true;
}

template <typename T>
bool LaunchForDim(const CudaContext& context, const AttentionParams& p, const AttentionWork& work) {
  switch (p.head_dim) {
    case 64:
      return LaunchPrefill<T, 64, 2>(context, p, work);
    case 80:
      return LaunchPrefill<T, 80, 2>(context, p, work);
    case 96:
      return LaunchPrefill<T, 96, 2>(context, p, work);
    case 128:
      // Turing's 64 KiB hold half as many queries.
      return LaunchPrefill<T, 128, 2>(context, p, work) ||
             LaunchPrefill<T, 128, 1>(context, p, work);
    case 256:
      return LaunchPrefill<T, 256, 1>(context, p, work);
    default:
      return false;
  }
}

}  // namespace

bool TryPrefill(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
                const AttentionWork& work) {
  if (p.activation != kv_dtype) return false;
  if (kv_dtype == DType::kF16) return LaunchForDim<__half>(context, p, work);
  if (kv_dtype == DType::kBF16 && context.compute_capability >= 80) {
    return LaunchForDim<__nv_bfloat16>(context, p, work);
  }
  return false;
}

}  // namespace pergola
