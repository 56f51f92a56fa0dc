// How far a norm on the device may be from the reference, which computes in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "tests/kernels/cuda/activations.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {

// Per thread a sum of hidden / 256 terms (or fewer), then a tree of 10 levels: below the CPU's
// hidden / 16 + 5 roundings from 100 values on, and never above hidden + 10.
inline double NormSumError(size_t hidden) {
  return static_cast<double>(hidden) / 256 + 11;
}

// Of rows that are as long as `weight`, rounded to `dtype`. As in norm_test.cc: the mean of |x| is
// below 6, and a normal value below 64.
inline std::function<double(size_t)> NormBound(const std::vector<float>& want,
                                               const std::vector<float>& weight,
                                               const std::vector<float>& bias, bool layer,
                                               DType dtype) {
  return [&want, &weight, &bias, layer, dtype](size_t i) {
    const size_t column = i % weight.size();
    const double sums = NormSumError(weight.size());
    const double w = std::abs(weight[column]);
    double error = (sums / 2 + 10) * std::abs(static_cast<double>(want[i]));
    if (layer) {
      const double normal = std::abs(want[i] - bias[column]) / std::max(w, 1e-30);
      error = w * (sums * 6 * 4 * (1 + normal) + (sums / 2 + 8) * normal) +
              2 * std::abs(static_cast<double>(want[i]));
    }
    return kUnit * error + RoundingError(dtype, want[i]);
  };
}

}  // namespace pergola
