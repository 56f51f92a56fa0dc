// The SIMD versions of the decoder's small ops for the stream's target. Arguments have been
// checked.
#pragma once

#include "base/limits.h"
#include "kernels/decoder_ops.h"

namespace pergola {

void RmsNormCpu(Stream& stream, const RmsNormArgs& args);
void RopeAndStoreCpu(Stream& stream, const RopeAndStoreArgs& args);
void LayerNormCpu(Stream& stream, const LayerNormArgs& args);
void HeadNormCpu(Stream& stream, const HeadNormArgs& args);
void ActivateCpu(Stream& stream, const ActivateArgs& args);
void SoftCapCpu(Stream& stream, const SoftCapArgs& args);
void PagedAttentionCpu(Stream& stream, const AttentionArgs& args);

// Largest KV block: attention's key tile.
inline constexpr int64_t kMaxBlockTokens = 128;

}  // namespace pergola
