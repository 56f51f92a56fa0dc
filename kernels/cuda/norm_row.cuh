// Norms of rows. All kThreads threads of a block work on one row; thread t has the values t *
// kStep, (t + kThreads) * kStep, ... of it, so that each finds in the first-level cache what it
// wrote itself. The first half adds the residual and sums (norm.cu, row_tokens.cu; peer_reduce.cu
// has its own), the second goes from the threads' sums to the normalised row.
#pragma once

#include <initializer_list>

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

template <typename X, typename R, typename Y>
struct NormJob {
  X* x;
  const R* residual;  // nullptr: none
  NormWeightsOfRow norm;
  int columns;
  Y* y;
};

// Of RmsNormArgs, or of LayerNormArgs with its bias.
template <typename X, typename R, typename Y, typename Args>
NormJob<X, R, Y> NormJobOf(const Args& args, const float* bias) {
  NormJob<X, R, Y> job;
  job.x = args.x.template as<X>();
  job.residual = args.residual.template as<R>();
  job.norm = {args.weight, bias, args.epsilon};
  job.columns = static_cast<int>(args.x.dim(1));
  job.y = args.y.template as<Y>();
  return job;
}

// Whether its rows may be taken four values at a time.
template <typename X, typename R, typename Y>
bool InFours(const NormJob<X, R, Y>& job) {
  for (const void* data : std::initializer_list<const void*>{job.x, job.residual, job.y,
                                                             job.norm.weight, job.norm.bias}) {
    if (!InFours(data, job.columns)) return false;
  }
  return true;
}

// Adds the residual where there is one; returns this thread's part of the sum of the row's
// NormTerms.
template <bool kLayer, int kThreads, int kStep, typename X, typename R, typename Y>
__device__ float UpdateAndSum(const NormJob<X, R, Y>& job, int64_t row) {
  X* x = job.x + row * job.columns;
  float sum = 0;
  for (int i = threadIdx.x * kStep; i < job.columns; i += kThreads * kStep) {
    float values[kStep];
    LoadFloats(x + i, values);
    if (job.residual != nullptr) {
      float added[kStep];
      LoadFloats(job.residual + row * job.columns + i, added);
#pragma unroll
      for (int k = 0; k < kStep; ++k) values[k] += added[k];
      StoreFloats(values, x + i);
    }
    sum += NormTerm<kLayer>(values);
  }
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
