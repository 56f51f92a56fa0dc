// The end of the attention of prompts whose keys were split: adds up a unit's parts, as the decode
// kernel does (flash-decoding: Dao, Haziza, Massa and Sizov, 2023), a warp for each query.
//
// Roof: L2 bandwidth, 4 * head_dim bytes per query and part. All parts of a step together are some
// 17 MB of heads of 128 on an H200 at most, which its L2 holds.
#include "kernels/cuda/attention_prefill.cuh"

namespace pergola {
namespace {

constexpr int kWarps = 4;
constexpr int kWarpQueries = 4;
constexpr int kBlockQueries = kWarps * kWarpQueries;

// What lane s multiplies the sums of part s by; 0 if there is no such part.
__device__ inline float FactorOfPart(const PrefillGrid& grid, int64_t unit, int query, int parts,
                                     int lane) {
  float2 stats = make_float2(-INFINITY, 0.0F);
  if (lane < parts) stats = grid.stats[(unit * grid.splits + lane) * grid.queries + query];
  const float largest = WarpMax(stats.x);
  // A part may have no key that this query sees.
  const float shrink = stats.y > 0.0F ? FastExp2(stats.x - largest) : 0.0F;
  return shrink / WarpSum(shrink * stats.y);
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpThreads)
    SumPartsKernel(AttentionParams p, PrefillGrid grid) {
  BeginKernel();
  const int pieces = grid.queries / kBlockQueries;
  const int unit = static_cast<int>(blockIdx.x) / pieces;
  const QueryBlock block = FindQueries(p, grid, unit);
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int first = (static_cast<int>(blockIdx.x) % pieces * kWarps + warp) * kWarpQueries;
  if (first >= block.count) return;
  const int parts = FindKeys(p, grid, block).parts;
  const int last = block.count - first < kWarpQueries ? block.count - first : kWarpQueries;
  for (int q = first; q < first + last; ++q) {
    const float own = FactorOfPart(grid, unit, q, parts, lane);
    const int query = block.first_query + q;
    const int64_t row = block.first_row + query / block.heads;
    const int64_t head = block.first_head + query % block.heads;
    T* out = static_cast<T*>(p.out) + (row * p.heads + head) * p.head_dim;
    for (int begin = 0; begin < p.head_dim; begin += 4 * kWarpThreads) {
      const int i = begin + 4 * lane;
      float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
#pragma unroll 8
      for (int s = 0; s < parts; ++s) {
        const float factor = __shfl_sync(0xffffffff, own, s);
        if (i >= p.head_dim) continue;
        const int64_t place = (static_cast<int64_t>(unit) * grid.splits + s) * grid.queries + q;
        const float4 part = *reinterpret_cast<const float4*>(grid.sums + place * p.head_dim + i);
        sum.x += factor * part.x;
        sum.y += factor * part.y;
        sum.z += factor * part.z;
        sum.w += factor * part.w;
      }
      if (i >= p.head_dim) continue;
      out[i] = FromFloat<T>(sum.x);
      out[i + 1] = FromFloat<T>(sum.y);
      out[i + 2] = FromFloat<T>(sum.z);
      out[i + 3] = FromFloat<T>(sum.w);
    }
  }
}

}  // namespace

void SumPrefillParts(const CudaContext& context, const AttentionParams& p, const PrefillGrid& grid,
                     int64_t units) {
  PERGOLA_CHECK(grid.queries % kBlockQueries == 0 && grid.splits <= kWarpThreads);
  const dim3 blocks(static_cast<unsigned>(units * (grid.queries / kBlockQueries)));
  if (p.activation == DType::kF16) {
    Launch(SumPartsKernel<__half>, blocks, kWarps * kWarpThreads, 0, context, p, grid);
  } else {
    PERGOLA_CHECK(p.activation == DType::kBF16);
    Launch(SumPartsKernel<__nv_bfloat16>, blocks, kWarps * kWarpThreads, 0, context, p, grid);
  }
}

}  // namespace pergola
