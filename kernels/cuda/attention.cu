// Chooses between the attention kernels.
#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/attention_launch.cuh"

namespace pergola {
namespace {

AttentionParams ParamsOf(const AttentionArgs& args) {
  AttentionParams p;
  p.qkv = args.qkv.data();
  p.out = args.out.data();
  p.activation = args.qkv.dtype();
  p.k_cache = args.k_cache;
  p.v_cache = args.v_cache;
  p.kv_of_head = args.kv_of_head;
  p.alibi_slopes = args.alibi_slopes;
  p.positions = args.positions;
  p.table_of_row = args.table_of_row;
  p.block_tables = args.block_tables;
  p.table_stride = args.table_stride;
  p.head_groups = args.work.head_groups;
  p.head_group_count = static_cast<int32_t>(args.work.head_group_count);
  p.largest_head_group = static_cast<int32_t>(args.work.largest_head_group);
  p.heads = static_cast<int32_t>(args.heads);
  p.kv_heads = static_cast<int32_t>(args.kv_heads);
  p.head_dim = static_cast<int32_t>(args.head_dim);
  p.block_tokens = static_cast<int32_t>(args.block_tokens);
  p.window =
      args.window > 0 ? static_cast<int32_t>(std::min<int64_t>(args.window, INT32_MAX)) : INT32_MAX;
  p.scale = args.scale;
  return p;
}

void CheckArgs(const AttentionArgs& args) {
  const DType dtype = args.qkv.dtype();
  PERGOLA_CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16);
  PERGOLA_CHECK(args.out.dtype() == dtype);
  PERGOLA_CHECK(args.qkv.rank() == 2 && args.out.rank() == 2);
  PERGOLA_CHECK(args.qkv.dim(1) == (args.heads + 2 * args.kv_heads) * args.head_dim);
  PERGOLA_CHECK(args.out.dim(0) == args.qkv.dim(0) &&
                args.out.dim(1) == args.heads * args.head_dim);
  PERGOLA_CHECK(args.kv_dtype == DType::kF32 || args.kv_dtype == DType::kBF16 ||
                args.kv_dtype == DType::kF16);
  PERGOLA_CHECK(args.head_dim >= 1 && args.head_dim <= kMaxHeadDim);
  PERGOLA_CHECK(args.block_tokens >= 16 && args.block_tokens % 16 == 0);
  PERGOLA_CHECK(args.work.largest_head_group <= kAttentionGroupHeads);
}

// The fast kernels copy 16 bytes at a time and take the largest of unscaled scores.
bool FastKernelsMayRun(const AttentionArgs& args) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return args.work.head_group_count > 0 && args.scale > 0 && aligned(args.qkv.data()) &&
         aligned(args.out.data()) && aligned(args.k_cache) && aligned(args.v_cache);
}

}  // namespace

void PagedAttentionCuda(const CudaContext& context, const AttentionArgs& args) {
  CheckArgs(args);
  if (args.heads == 0) return;
  const AttentionParams p = ParamsOf(args);
  const AttentionWork& work = args.work;
  const bool fast = FastKernelsMayRun(args);
  if (work.prefill_tile_count > 0 && !(fast && TryPrefill(context, p, args.kv_dtype, work))) {
    GenericPrefill(context, p, args.kv_dtype, work);
  }
  if (work.decode_row_count > 0 && !(fast && TryDecode(context, p, args.kv_dtype, work))) {
    GenericDecode(context, p, args.kv_dtype, work);
  }
}

int64_t PagedAttentionWorkspaceBytes(int multiprocessors, int64_t largest_head_group,
                                     int64_t head_dim) {
  // Per part and head, or query, its sum, largest score and total.
  return std::max(LargestDecodeParts(multiprocessors) * largest_head_group,
                  LargestPrefillParts(multiprocessors) * kMostPrefillQueries) *
         (head_dim + 2) * 4;
}

}  // namespace pergola
