// The SIMD versions of the decoder's small ops for the stream's target. Arguments have been
// checked.
#pragma once

#include "kernels/decoder_ops.h"

namespace pergola {

void RmsNormCpu(Stream& stream, const RmsNormArgs& args);
void RopeAndStoreCpu(Stream& stream, const RopeAndStoreArgs& args);
void SwiGluCpu(Stream& stream, const SwiGluArgs& args);
void PagedAttentionCpu(Stream& stream, const AttentionArgs& args);

// Longest head that attention's fixed scratch takes.
inline constexpr int64_t kMaxHeadDim = 512;
// Largest KV block: attention's key tile.
inline constexpr int64_t kMaxBlockTokens = 128;

}  // namespace pergola
