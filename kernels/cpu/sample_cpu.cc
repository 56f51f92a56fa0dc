#include "kernels/cpu/sample_cpu.h"

#include <limits>

#include "kernels/cpu/targets.h"
#include "kernels/sample_math.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample_cpu.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

LogitScan ScanLogitsImpl(const float* logits, int64_t values) {
  const F32 d;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  VF32 best = hn::Set(d, -kInfinity);
  auto good = hn::Eq(best, best);
  int64_t i = 0;
  for (; i + kLanes <= values; i += kLanes) {
    const VF32 x = hn::LoadU(d, logits + i);
    best = hn::IfThenElse(hn::Gt(x, best), x, best);
    good = hn::And(good, hn::Lt(x, hn::Set(d, kInfinity)));  // false for NaN
  }
  LogitScan scan{hn::GetLane(hn::MaxOfLanes(d, best)), hn::AllTrue(d, good)};
  for (; i < values; ++i) {
    if (logits[i] > scan.largest) scan.largest = logits[i];
    scan.valid = scan.valid && logits[i] < kInfinity;
  }
  return scan;
}

int64_t NextAboveImpl(const float* logits, int64_t begin, int64_t values, float bound) {
  const F32 d;
  int64_t i = begin;
  for (; i + kLanes <= values; i += kLanes) {
    const auto hit = hn::Gt(hn::LoadU(d, logits + i), hn::Set(d, bound));
    const auto first = hn::FindFirstTrue(d, hit);
    if (first >= 0) return i + first;
  }
  for (; i < values; ++i) {
    if (logits[i] > bound) return i;
  }
  return values;
}

int64_t NextAtLeastImpl(const float* logits, int64_t begin, int64_t values, float bound) {
  const F32 d;
  int64_t i = begin;
  for (; i + kLanes <= values; i += kLanes) {
    const auto hit = hn::Ge(hn::LoadU(d, logits + i), hn::Set(d, bound));
    const auto first = hn::FindFirstTrue(d, hit);
    if (first >= 0) return i + first;
  }
  for (; i < values; ++i) {
    if (logits[i] >= bound) return i;
  }
  return values;
}

void SoftmaxWeightsImpl(const float* logits, int64_t values, double largest, double inverse,
                        double* weights) {
  int64_t i = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const hn::CappedTag<double, 8> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::Rebind<float, decltype(d)> df;
  constexpr int64_t kStep = static_cast<int64_t>(hn::MaxLanes(d));
  const auto magic = hn::Set(d, kRoundMagic);
  for (; i + kStep <= values; i += kStep) {
    const auto logit = hn::PromoteTo(d, hn::LoadU(df, logits + i));
    const auto x = hn::Mul(hn::Sub(logit, hn::Set(d, largest)), hn::Set(d, inverse));
    const auto shifted = hn::Add(hn::Mul(x, hn::Set(d, kLog2E)), magic);
    const auto n = hn::Sub(shifted, magic);
    auto r = hn::Sub(x, hn::Mul(n, hn::Set(d, kLn2High)));
    r = hn::Sub(r, hn::Mul(n, hn::Set(d, kLn2Low)));
    auto p = hn::Set(d, kExpTaylor[0]);
    for (int c = 1; c < 14; ++c) p = hn::Add(hn::Mul(p, r), hn::Set(d, kExpTaylor[c]));
    const auto exponent = hn::ShiftLeft<52>(hn::BitCast(du, shifted));
    p = hn::BitCast(d, hn::Add(hn::BitCast(du, p), exponent));
    p = hn::IfThenElse(hn::Ge(x, hn::Set(d, kSmallestExponent)), p, hn::Zero(d));
    hn::StoreU(p, d, weights + i);
  }
#endif
  for (; i < values; ++i) {
    weights[i] = SoftmaxWeight((static_cast<double>(logits[i]) - largest) * inverse);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pergola {

LogitScan ScanLogits(CpuTarget target, const float* logits, int64_t values) {
  return PERGOLA_CHOOSE(target, ScanLogitsImpl)(logits, values);
}

int64_t NextAbove(CpuTarget target, const float* logits, int64_t begin, int64_t values,
                  float bound) {
  return PERGOLA_CHOOSE(target, NextAboveImpl)(logits, begin, values, bound);
}

int64_t NextAtLeast(CpuTarget target, const float* logits, int64_t begin, int64_t values,
                    float bound) {
  return PERGOLA_CHOOSE(target, NextAtLeastImpl)(logits, begin, values, bound);
}

void SoftmaxWeights(CpuTarget target, const float* logits, int64_t values, double largest,
                    double inverse, double* weights) {
  PERGOLA_CHOOSE(target, SoftmaxWeightsImpl)(logits, values, largest, inverse, weights);
}

}  // namespace pergola
#endif  // HWY_ONCE
