// RopeAndStore: rotates the heads of q and k and writes k and v into the paged cache. Roof: memory;
// qkv is read once and q and k written back once, in one pass with the cache. One warp per head of
// a row.
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/types.cuh"

namespace pergola {
namespace {

constexpr int kWarps = 4;

template <typename A, typename Kv>
struct RopeJob {
  A* qkv;
  const float* cosine;
  const float* sine;
  const int32_t* positions;
  const int64_t* slot_of_row;
  Kv* k_cache;
  Kv* v_cache;
  int64_t rows;
  int heads, kv_heads, head_dim, rope_pairs, block_tokens;
};

// What is computed from the rounded value is what attention reads back: the cache gets the f32.
template <typename A, typename Kv>
__device__ void Put(float value, A* x, Kv* cache) {
  *x = FromFloat<A>(value);
  if (cache != nullptr) *cache = FromFloat<Kv>(value);
}

template <typename A, typename Kv>
__global__ void __launch_bounds__(kWarps * 32) RopeKernel(RopeJob<A, Kv> job) {
  BeginKernel();
  const int heads = job.heads + 2 * job.kv_heads;
  const int64_t item = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (item >= job.rows * heads) return;
  const int64_t row = item / heads;
  const int head = static_cast<int>(item % heads);
  const int lane = threadIdx.x % 32;
  const int64_t position = job.positions[row];
  if (position < 0) return;
  A* x = job.qkv + item * job.head_dim;
  Kv* cache = nullptr;
  if (head >= job.heads) {
    const bool key = head < job.heads + job.kv_heads;
    const int kv_head = (head - job.heads) % job.kv_heads;
    const int64_t slot = job.slot_of_row[row];
    const int64_t line = (slot / job.block_tokens * job.kv_heads + kv_head) * job.block_tokens +
                         slot % job.block_tokens;
    cache = (key ? job.k_cache : job.v_cache) + line * job.head_dim;
  }
  const int pairs = head < job.heads + job.kv_heads ? job.rope_pairs : 0;
  const float* cosine = job.cosine + position * job.rope_pairs;
  const float* sine = job.sine + position * job.rope_pairs;
  for (int i = lane; i < pairs; i += 32) {
    const float a = ToFloat(x[i]), b = ToFloat(x[pairs + i]);
    const float c = cosine[i], s = sine[i];
    Put(a * c - b * s, x + i, cache == nullptr ? nullptr : cache + i);
    Put(b * c + a * s, x + pairs + i, cache == nullptr ? nullptr : cache + pairs + i);
  }
  if (cache == nullptr) return;
  for (int i = 2 * pairs + lane; i < job.head_dim; i += 32) cache[i] = FromFloat<Kv>(ToFloat(x[i]));
}

template <typename A, typename Kv>
void LaunchRope(const CudaContext& context, const RopeAndStoreArgs& args) {
  RopeJob<A, Kv> job;
  job.qkv = args.qkv.as<A>();
  job.cosine = args.rope.cosine;
  job.sine = args.rope.sine;
  job.positions = args.positions;
  job.slot_of_row = args.slot_of_row;
  job.k_cache = static_cast<Kv*>(args.k_cache);
  job.v_cache = static_cast<Kv*>(args.v_cache);
  job.rows = args.qkv.dim(0);
  job.heads = static_cast<int>(args.heads);
  job.kv_heads = static_cast<int>(args.kv_heads);
  job.head_dim = static_cast<int>(args.head_dim);
  job.rope_pairs = static_cast<int>(args.rope.dims / 2);
  job.block_tokens = static_cast<int>(args.block_tokens);
  const int64_t items = job.rows * (args.heads + 2 * args.kv_heads);
  const auto blocks = static_cast<unsigned>((items + kWarps - 1) / kWarps);
  Launch(RopeKernel<A, Kv>, dim3(blocks), kWarps * 32, 0, context, job);
}

}  // namespace

void RopeAndStoreCuda(const CudaContext& context, const RopeAndStoreArgs& args) {
  if (args.qkv.dim(0) == 0) return;
  WithFloatType(args.qkv.dtype(), [&](auto activation) {
    WithFloatType(args.kv_dtype,
                  [&](auto kv) { LaunchRope<decltype(activation), decltype(kv)>(context, args); });
  });
}

}  // namespace pergola
