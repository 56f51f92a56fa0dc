// Norms of rows that a block's registers hold, by the formulas and in the order of norm_row.cuh:
// the same bits. A decode step waits for two norms in every layer, and one block's time is
// latency: here all loads are under way at once instead of a loop's one after the other, and the
// weights, which come from device memory since the layers' weights have flown through L2 meanwhile,
// before the kernel before this one has ended.
#pragma once

#include <type_traits>

#include "kernels/cuda/norm_row.cuh"

namespace pergola {

inline constexpr int kHeldThreads = 256;
inline constexpr int kHeldStep = 4;
// Values of a row for each group of four that a thread holds.
inline constexpr int kHeldColumns = kHeldThreads * kHeldStep;

template <int kHeld>
struct HeldRow {
  float values[kHeld][kHeldStep];
};

template <int kHeld, typename T>
__device__ void LoadHeld(const T* from, int columns, HeldRow<kHeld>* to) {
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = static_cast<int>(threadIdx.x) * kHeldStep + h * kHeldColumns;
    if (i < columns) LoadFloats(from + i, to->values[h]);
  }
}

// Adds the residual, if there is one, stores the sum, and returns this thread's NormTerms.
template <bool kLayer, int kHeld, typename Job>
__device__ float UpdateHeld(const Job& job, int64_t row, HeldRow<kHeld>* held) {
  using X = std::remove_pointer_t<decltype(job.x)>;
  X* x = job.x + row * job.columns;
  HeldRow<kHeld> added;
  LoadHeld(x, job.columns, held);
  if (job.residual != nullptr) LoadHeld(job.residual + row * job.columns, job.columns, &added);
  float sum = 0;
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = static_cast<int>(threadIdx.x) * kHeldStep + h * kHeldColumns;
    if (i >= job.columns) break;
    float(&values)[kHeldStep] = held->values[h];
    if (job.residual != nullptr) {
#pragma unroll
      for (int k = 0; k < kHeldStep; ++k) values[k] += added.values[h][k];
      StoreFloats(values, x + i);
    }
    sum += NormTerm<kLayer>(values);
#pragma unroll
    for (int k = 0; k < kHeldStep; ++k) values[k] = ToFloat(FromFloat<X>(values[k]));
  }
  return sum;
}

template <bool kLayer, int kHeld, typename Job>
__global__ void __launch_bounds__(kHeldThreads) HeldNormKernel(Job job) {
  LetNextBegin();
  __shared__ float scratch[32];
  HeldRow<kHeld> held, weights, biases;
  LoadHeld(job.norm.weight, job.columns, &weights);
  if (kLayer) LoadHeld(job.norm.bias, job.columns, &biases);
  AwaitPrevious();
  const int64_t row = blockIdx.x;
  const float columns = static_cast<float>(job.columns);
  float sum = BlockSum(UpdateHeld<kLayer>(job, row, &held), scratch);
  float mean = 0;
  if (kLayer) {
    mean = sum / columns;
    sum = 0;
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      if (static_cast<int>(threadIdx.x) * kHeldStep + h * kHeldColumns >= job.columns) break;
#pragma unroll
      for (int k = 0; k < kHeldStep; ++k) {
        sum += (held.values[h][k] - mean) * (held.values[h][k] - mean);
      }
    }
    sum = BlockSum(sum, scratch);
  }
  const float scale = 1.0F / sqrtf(sum / columns + job.norm.epsilon);
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int i = static_cast<int>(threadIdx.x) * kHeldStep + h * kHeldColumns;
    if (i >= job.columns) break;
    float(&values)[kHeldStep] = held.values[h];
#pragma unroll
    for (int k = 0; k < kHeldStep; ++k) {
      if (kLayer) {
        values[k] = (values[k] - mean) * scale * weights.values[h][k] + biases.values[h][k];
      } else {
        values[k] = values[k] * scale * weights.values[h][k];
      }
    }
    StoreFloats(values, job.y + row * job.columns + i);
  }
}

// The kernel for rows of `columns`, in fours; nullptr if they are too long.
template <bool kLayer, typename Job>
auto HeldNormKernelFor(const Job& job) -> void (*)(Job) {
  if (job.columns <= 2 * kHeldColumns) return HeldNormKernel<kLayer, 2, Job>;
  if (job.columns <= 4 * kHeldColumns) return HeldNormKernel<kLayer, 4, Job>;
  if (job.columns <= 8 * kHeldColumns) return HeldNormKernel<kLayer, 8, Job>;
  // With its mean's pass and its biases a LayerNorm of more does not fit the registers.
  if constexpr (!kLayer) {
    if (job.columns <= 16 * kHeldColumns) return HeldNormKernel<kLayer, 16, Job>;
  }
  return nullptr;
}

}  // namespace pergola
