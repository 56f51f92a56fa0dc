// Launchers of the sums over ranks that peer_reduce.cu computes. Arguments have been checked by the
// caller (peer_reducer.cc); messages are at most space.most_bytes. Every rank makes the same calls.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/cuda/peer_memory.h"
#include "kernels/decoder_ops.h"

namespace pergola {

// How often a value crosses between GPUs, see peer_reduce.cu. kAuto: by size.
enum class PeerShots : uint8_t { kAuto, kOne, kTwo };

// x = the sum over the ranks; f32, bf16 or f16.
void PeerSumCuda(const CudaContext& context, const PeerSpace& space, const Tensor& x,
                 PeerShots shots = PeerShots::kAuto);
// The same, added to args.x; args.y stays.
void PeerSumAddCuda(const CudaContext& context, const PeerSpace& space, const AddArgs& args,
                    PeerShots shots = PeerShots::kAuto);
// The sum of args.residual, added to args.x (f32); then the norm of that. args.residual stays.
void PeerSumNormCuda(const CudaContext& context, const PeerSpace& space, const RmsNormArgs& args,
                     PeerShots shots = PeerShots::kAuto);
void PeerSumNormCuda(const CudaContext& context, const PeerSpace& space, const LayerNormArgs& args,
                     PeerShots shots = PeerShots::kAuto);

}  // namespace pergola
