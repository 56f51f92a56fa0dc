// Stands for the CUDA toolkit's header of this name when kernels are compiled for the emulator
// (kernels/cuda/emulator/emulator.h): qualifiers, built-in variables and functions, runtime API.
// What is not here, kernels here do not use.
#pragma once

#define PERGOLA_CUDA_EMULATOR 1

#include <vector_types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>

// NOLINTBEGIN(bugprone-reserved-identifier): the names are CUDA's.
#define __global__ __attribute__((unused))
#define __device__ __attribute__((unused))
#define __host__
#define __shared__ static __thread
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

extern __thread uint3 threadIdx, blockIdx, blockDim, gridDim;
inline constexpr int warpSize = 32;
// NOLINTEND(bugprone-reserved-identifier)

#include "kernels/cuda/emulator/intrinsics.h"
#include "kernels/cuda/emulator/runtime_api.h"
#include "kernels/cuda/emulator/warp_functions.h"
