// How far rounding weights, and tokens as much again, may move the logits of a model: by noise.
//
// Rounding acts as noise: an error of at most half a step per weight, and of formats that round
// tokens too as much again per token. The f32 weights are disturbed by uniform noise of +-1 step
// (four times the variance of rounding) in three draws; twice the worst logit error of them is the
// bound.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "tests/worker/all_logits.h"
#include "tests/worker/rounded_checkpoint.h"

namespace pergola {

inline double Worst(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(off <= worst)) worst = off;  // a NaN stays
  }
  return worst;
}

inline float Fp8Step(float value, float scale) {
  int exponent = 0;
  std::frexp(value / scale, &exponent);
  return scale * std::ldexp(1.0F, std::max(exponent - 4, -9));
}

// The distance of neighbouring numbers of a format at each value of a row.
inline std::vector<float> Steps(DType held, const std::vector<float>& row) {
  std::vector<float> steps(row.size());
  const auto size = [](float a, float b) { return std::abs(a) < std::abs(b); };
  const float most = std::abs(*std::max_element(row.begin(), row.end(), size));
  for (size_t k = 0; k < row.size(); ++k) {
    const auto group = row.begin() + static_cast<int64_t>(k / 32 * 32);
    const auto group_end = std::min(group + 32, row.end());
    const auto [low, high] = std::minmax_element(group, group_end);
    int exponent = 0;
    std::frexp(row[k], &exponent);
    steps[k] = held == DType::kBF16   ? std::ldexp(1.0F, exponent - 8)
               : held == DType::kF16  ? std::ldexp(1.0F, std::max(exponent - 11, -24))
               : held == DType::kInt8 ? most / 127
               : held == DType::kFp8  ? Fp8Step(row[k], most / kMostE4M3)
                                      : (*high - *low) / 15;
  }
  return steps;
}

inline double NoiseBound(const Checkpoint& checkpoint, const std::vector<int32_t>& prompt,
                         WeightFormat format, const std::vector<float>& f32) {
  double worst = 0;
  for (uint32_t draw = 0; draw < 3; ++draw) {
    std::mt19937 random(draw);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const RoundedCheckpoint noisy(checkpoint,
                                  [&](std::vector<float>* row, DType file, bool projection) {
                                    const DType held = HeldDType(format, file, projection);
                                    if (held == file || held == DType::kF32) return;
                                    const std::vector<float> steps = Steps(held, *row);
                                    for (size_t k = 0; k < row->size(); ++k)
                                      (*row)[k] += steps[k] * uniform(random);
                                  });
    worst = std::max(worst, Worst(AllLogits(noisy, prompt, WeightFormat::kF32), f32));
  }
  return 2 * worst;
}

}  // namespace pergola
