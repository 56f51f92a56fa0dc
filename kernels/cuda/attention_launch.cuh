// The three ways to compute attention, for the launcher that chooses (attention.cu). Each enqueues
// its kernel, or returns false if it has none for these shapes and types.
#pragma once

#include "base/limits.h"
#include "kernels/cuda/attention_tile.cuh"

namespace pergola {

// Shared memory a block may have, bytes.
inline int64_t SharedLimit(int compute_capability) {
  if (compute_capability < 80) return 64 << 10;
  if (compute_capability == 80 || compute_capability == 87) return 163 << 10;
  return compute_capability < 90 ? 99 << 10 : kMaxSharedBytes;
}

// Queries of a block for prompts at most.
inline constexpr int64_t kMostPrefillQueries = 128;

bool TryPrefill(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
                const AttentionWork& work);
bool TryDecode(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
               const AttentionWork& work);
// Takes anything.
void GenericPrefill(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
                    const AttentionWork& work);
void GenericDecode(const CudaContext& context, const AttentionParams& p, DType kv_dtype,
                   const AttentionWork& work);

}  // namespace pergola
