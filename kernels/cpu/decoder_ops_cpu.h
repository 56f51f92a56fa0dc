// The SIMD versions of the decoder's small ops for the stream's target. Arguments have been
// checked.
#pragma once

#include "base/limits.h"
#include "kernels/decoder_ops.h"

namespace pergola {

void RmsNormCpu(CpuStream& stream, const RmsNormArgs& args);
void RopeAndStoreCpu(CpuStream& stream, const RopeAndStoreArgs& args);
void LayerNormCpu(CpuStream& stream, const LayerNormArgs& args);
void HeadNormCpu(CpuStream& stream, const HeadNormArgs& args);
void ActivateCpu(CpuStream& stream, const ActivateArgs& args);
void SoftCapCpu(CpuStream& stream, const SoftCapArgs& args);
void PagedAttentionCpu(CpuStream& stream, const AttentionArgs& args);

}  // namespace pergola
