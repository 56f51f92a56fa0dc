// The second half of a norm, for kernels that have just written a row and summed it (norm.cu,
// peer_reduce.cu): from the threads' sums to the normalised row. All kThreads threads of a block
// work on one row; thread t has the values t * kStep, (t + kThreads) * kStep, ... of it, so that
// each finds in the first-level cache what it wrote itself.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/types.cuh"

namespace pergola {

struct NormWeightsOfRow {
  const float* weight;  // [columns]
  const float* bias;    // [columns], of a LayerNorm
  float epsilon;
};

// What a value adds to the sum that NormaliseRow is given: of squares, of values for a LayerNorm.
template <bool kLayer, int kStep>
__device__ float NormTerm(const float (&values)[kStep]) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kStep; ++k) sum += kLayer ? values[k] : values[k] * values[k];
  return sum;
}

// y = the norm of the row x, which may be y. `sum` is this thread's part of the row's NormTerms;
// `scratch` as BlockSum's.
template <bool kLayer, int kThreads, int kStep, typename X, typename Y>
__device__ void NormaliseRow(const NormWeightsOfRow& norm, const X* x, int row_columns, float sum,
                             float* scratch, Y* y) {
  const float columns = static_cast<float>(row_columns);
  sum = BlockSum(sum, scratch);
  float mean = 0;
  if (kLayer) {
    mean = sum / columns;
    sum = 0;
    for (int i = threadIdx.x * kStep; i < row_columns; i += kThreads * kStep) {
      float values[kStep];
      LoadFloats(x + i, values);
#pragma unroll
      for (int k = 0; k < kStep; ++k) sum += (values[k] - mean) * (values[k] - mean);
    }
    sum = BlockSum(sum, scratch);
  }
  const float scale = 1.0F / sqrtf(sum / columns + norm.epsilon);
  for (int i = threadIdx.x * kStep; i < row_columns; i += kThreads * kStep) {
    float values[kStep], weights[kStep];
    LoadFloats(x + i, values);
    LoadFloats(norm.weight + i, weights);
    if (kLayer) {
      float biases[kStep];
      LoadFloats(norm.bias + i, biases);
#pragma unroll
      for (int k = 0; k < kStep; ++k) {
        values[k] = (values[k] - mean) * scale * weights[k] + biases[k];
      }
    } else {
#pragma unroll
      for (int k = 0; k < kStep; ++k) values[k] = values[k] * scale * weights[k];
    }
    StoreFloats(values, y + i);
  }
}

}  // namespace pergola
