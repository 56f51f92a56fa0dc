// The CUDA versions of the decoder's small ops (decoder_ops.h has their contracts). Each enqueues
// its kernels on the context's stream and returns. Arguments have been checked; a row whose
// position or index is negative is padding of a captured step and is left alone.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/decoder_ops.h"

namespace pergola {

void RmsNormCuda(const CudaContext& context, const RmsNormArgs& args);
void LayerNormCuda(const CudaContext& context, const LayerNormArgs& args);
void HeadNormCuda(const CudaContext& context, const HeadNormArgs& args);
void RopeAndStoreCuda(const CudaContext& context, const RopeAndStoreArgs& args);
void ActivateCuda(const CudaContext& context, const ActivateArgs& args);
void SoftCapCuda(const CudaContext& context, const SoftCapArgs& args);
void AddCuda(const CudaContext& context, const AddArgs& args);
void CopyRowsCuda(const CudaContext& context, const CopyRowsArgs& args);
void CopyColumnsCuda(const CudaContext& context, const CopyColumnsArgs& args);
void ScatterCuda(const CudaContext& context, const ScatterArgs& args);
void TakeTokensCuda(const CudaContext& context, const TakeTokensArgs& args);
void CopyBlockCuda(const CudaContext& context, const CopyBlockArgs& args);

}  // namespace pergola
