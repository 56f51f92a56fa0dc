// PagedAttention (contract in kernels/decoder_ops.h) on a CUDA device. Rows come by the lists of
// args.work (kernels/attention_work.h); other rows of `out` stay as they are. qkv and out have one
// type: f32, bf16 or f16. All pointers of the arguments are to device memory.
//
// Error against PagedAttentionRef on the same inputs, relative to the mean of |v| that the weights
// give: the unit roundoff of the cache's type where it is the activations' (weights are rounded to
// it), else its square; besides it the rounding of the output and f32 arithmetic, as derived in
// tests/kernels/cuda_attention_test.cc. Bits depend on the numbers of decode rows and tiles, on
// longest_context and longest_prompt (how keys are split), not on the order in which blocks run.
//
// A key or value that is NaN or infinite makes the rows that see it NaN. In the prefill kernel it
// may also reach earlier rows of the same sequence in the same tile, but never another sequence.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"
#include "kernels/decoder_ops.h"

namespace pergola {

void PagedAttentionCuda(const CudaContext& context, const AttentionArgs& args);

// Bytes of context.workspace that any call with these shapes takes.
int64_t PagedAttentionWorkspaceBytes(int multiprocessors, int64_t largest_head_group,
                                     int64_t head_dim);

}  // namespace pergola
