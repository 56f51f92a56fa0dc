// The activations of an MLP (ActivateArgs of kernels/decoder_ops.h), of one value in f32.
#pragma once

#include "kernels/cuda/device.cuh"
#include "model/model_spec.h"

namespace pergola {

template <Activation kActivation>
__device__ __forceinline__ float Activated(float x) {
  if (kActivation == Activation::kSilu) return x / (1.0F + expf(-x));
  if (kActivation == Activation::kGeluErf) return 0.5F * x * (1.0F + erff(x * 0.70710678F));
  // x / 2 (1 + tanh(z)) is x / (1 + e^-2z), where no difference cancels.
  const float inner = 1.59576912F * (x + 0.044715F * x * x * x);
  return x / (1.0F + expf(-inner));
}

}  // namespace pergola
