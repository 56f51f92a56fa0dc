// Attention for any types, head size and block size: the path of f32 models, whose results are held
// against the reference, and of what the fast kernels do not take.
//
// A block of four warps has one row and head. The lanes of a warp hold the query's values; the
// warps take keys in turn, four at a time, each with its own online softmax (Dao et al.,
// FlashAttention, arXiv:2205.14135, algorithm 1), added up at the end. All in f32.
//
// Roof: L2 bandwidth. Every (row, head) reads the keys and values it sees once; what its neighbours
// read is in L2.
#include "kernels/cuda/attention_launch.cuh"

namespace pergola {
namespace {

constexpr int kWarps = 4;
constexpr int kKeys = 4;  // of a step of a warp: so many loads are under way

// The rows to compute: those of a list, or of prefill tiles (kAttentionTileRows places each).
struct RowList {
  const int32_t* rows = nullptr;
  const int32_t* tiles = nullptr;
};

__device__ int RowAt(const RowList& list, int64_t i) {
  if (list.rows != nullptr) return list.rows[i];
  const int32_t* tile = list.tiles + i / kAttentionTileRows * 2;
  const auto in_tile = static_cast<int32_t>(i % kAttentionTileRows);
  return tile[0] >= 0 && in_tile < tile[1] ? tile[0] + in_tile : -1;
}

// Value lane + 32 j of a head is with each lane in place j.
template <int kSteps>
struct WarpState {
  float query[kSteps];
  float sum[kSteps];
  float largest = -INFINITY;
  float total = 0.0F;
};

// scores[c] of keys [key, key + kKeys), minus infinity for those outside [first, end).
template <typename T, int kSteps>
__device__ void ScoreKeys(const AttentionParams& p, const WarpState<kSteps>& state, const T* keys,
                          float (&scores)[kKeys], int lane) {
#pragma unroll
  for (int c = 0; c < kKeys; ++c) {
    scores[c] = 0.0F;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const int i = lane + j * kWarpThreads;
      if (i < p.head_dim) {
        scores[c] += state.query[j] * ToFloat(keys[static_cast<int64_t>(c) * p.head_dim + i]);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kKeys; ++c) scores[c] = WarpSum(scores[c]);
}

// Adds the keys that this warp takes of [first, end).
template <typename T, int kSteps>
__device__ void AttendKeys(const AttentionParams& p, int row, int kv_head, float slope,
                           WarpState<kSteps>* state) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int position = p.positions[row];
  const int first = FirstKey(p, position);
  const int32_t* table = TableOfRow(p, row);
  for (int key = (first / kKeys + warp) * kKeys; key <= position; key += kWarps * kKeys) {
    // kKeys divides a block's tokens. Keys of the block that the row does not see are read (they
    // are in the cache's memory) and left out.
    const int64_t block = table[key / p.block_tokens];
    const int64_t at =
        ((block * p.kv_heads + kv_head) * p.block_tokens + key % p.block_tokens) * p.head_dim;
    float scores[kKeys];
    ScoreKeys(p, *state, static_cast<const T*>(p.k_cache) + at, scores, lane);
    float largest = state->largest;
#pragma unroll
    for (int c = 0; c < kKeys; ++c) {
      scores[c] = scores[c] * p.scale + slope * static_cast<float>(key + c - position);
      if (key + c < first || key + c > position) scores[c] = -INFINITY;
      largest = fmaxf(largest, scores[c]);
    }
    const float shrink = state->largest == largest ? 1.0F : expf(state->largest - largest);
    const float shift = largest == -INFINITY ? 0.0F : largest;
    state->largest = largest;
    state->total *= shrink;
#pragma unroll
    for (int j = 0; j < kSteps; ++j) state->sum[j] *= shrink;
    const T* values = static_cast<const T*>(p.v_cache) + at;
#pragma unroll
    for (int c = 0; c < kKeys; ++c) {
      if (key + c < first || key + c > position) continue;
      const float weight = expf(scores[c] - shift);
      state->total += weight;
#pragma unroll
      for (int j = 0; j < kSteps; ++j) {
        const int i = lane + j * kWarpThreads;
        if (i < p.head_dim) {
          state->sum[j] += weight * ToFloat(values[static_cast<int64_t>(c) * p.head_dim + i]);
        }
      }
    }
  }
}

template <typename T, int kSteps>
__global__ void __launch_bounds__(kWarps* kWarpThreads)
    GenericKernel(AttentionParams p, RowList list) {
  BeginKernel();
  __shared__ float sums[kWarps][kSteps * kWarpThreads];
  __shared__ float largest[kWarps];
  __shared__ float total[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpThreads;
  const int warp = thread / kWarpThreads;
  const int row = RowAt(list, blockIdx.x / p.heads);
  const int head = static_cast<int>(blockIdx.x % p.heads);
  if (row < 0 || p.positions[row] < 0) return;

  WarpState<kSteps> state;
  const int64_t query = (static_cast<int64_t>(row) * (p.heads + 2 * p.kv_heads) + head) *
                        static_cast<int64_t>(p.head_dim);
#pragma unroll
  for (int j = 0; j < kSteps; ++j) {
    const int i = lane + j * kWarpThreads;
    state.query[j] = i < p.head_dim ? LoadAs(p.activation, p.qkv, query + i) : 0.0F;
    state.sum[j] = 0.0F;
  }
  AttendKeys<T>(p, row, p.kv_of_head[head], p.alibi_slopes == nullptr ? 0.0F : p.alibi_slopes[head],
                &state);
#pragma unroll
  for (int j = 0; j < kSteps; ++j) sums[warp][lane + j * kWarpThreads] = state.sum[j];
  if (lane == 0) {
    largest[warp] = state.largest;
    total[warp] = state.total;
  }
  __syncthreads();
  float top = largest[0];
  for (int w = 1; w < kWarps; ++w) top = fmaxf(top, largest[w]);
  float shrink[kWarps];
  float sum_of_weights = 0.0F;
  for (int w = 0; w < kWarps; ++w) {
    shrink[w] = largest[w] == top ? 1.0F : expf(largest[w] - top);
    sum_of_weights += total[w] * shrink[w];
  }
  const int64_t out = (static_cast<int64_t>(row) * p.heads + head) * p.head_dim;
  for (int i = thread; i < p.head_dim; i += kWarps * kWarpThreads) {
    float sum = 0.0F;
    for (int w = 0; w < kWarps; ++w) sum += sums[w][i] * shrink[w];
    StoreAs(p.activation, p.out, out + i, sum / sum_of_weights);
  }
}

template <typename T>
void LaunchGeneric(const CudaContext& context, const AttentionParams& p, const RowList& list,
                   int64_t rows) {
  const int64_t blocks = rows * p.heads;
  PERGOLA_CHECK(blocks <= INT32_MAX);
  const dim3 grid(static_cast<unsigned>(blocks));
  constexpr int kThreads = kWarps * kWarpThreads;
  if (p.head_dim <= 4 * kWarpThreads) {
    Launch(GenericKernel<T, 4>, grid, kThreads, 0, context, p, list);
  } else {
    static_assert(kMaxHeadDim <= 16 * kWarpThreads, "longer heads need more values per lane");
    Launch(GenericKernel<T, 16>, grid, kThreads, 0, context, p, list);
  }
}

void LaunchForType(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
                   const RowList& list, int64_t rows) {
  if (kv_dtype == DType::kF32) return LaunchGeneric<float>(context, p, list, rows);
  if (kv_dtype == DType::kF16) return LaunchGeneric<__half>(context, p, list, rows);
  LaunchGeneric<__nv_bfloat16>(context, p, list, rows);
}

}  // namespace

void GenericPrefill(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
                    const AttentionWork& work) {
  RowList list;
  list.tiles = work.prefill_tiles;
  LaunchForType(context, p, kv_dtype, list, work.prefill_tile_count * kAttentionTileRows);
}

void GenericDecode(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
                   const AttentionWork& work) {
  RowList list;
  list.rows = work.decode_rows;
  LaunchForType(context, p, kv_dtype, list, work.decode_row_count);
}

}  // namespace pergola
