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

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
using F64 = hn::CappedTag<double, 8>;
using VF64 = hn::Vec<F64>;
constexpr int64_t kWideLanes = static_cast<int64_t>(hn::MaxLanes(F64()));

// Exponent of sample_math.h.
HWY_INLINE VF64 Exponents(const float* logits, double largest, double inverse) {
  const F64 d;
  const hn::Rebind<float, F64> df;
  const VF64 logit = hn::PromoteTo(d, hn::LoadU(df, logits));
  return hn::Mul(hn::Sub(logit, hn::Set(d, largest)), hn::Set(d, inverse));
}

// SoftmaxWeight of sample_math.h, operation by operation.
HWY_INLINE VF64 Weights(VF64 x) {
  const F64 d;
  const hn::RebindToUnsigned<F64> du;
  const VF64 magic = hn::Set(d, kRoundMagic);
  const VF64 shifted = hn::Add(hn::Mul(x, hn::Set(d, kLog2E)), magic);
  const VF64 n = hn::Sub(shifted, magic);
  VF64 r = hn::Sub(x, hn::Mul(n, hn::Set(d, kLn2High)));
  r = hn::Sub(r, hn::Mul(n, hn::Set(d, kLn2Low)));
  VF64 p = hn::Set(d, kExpTaylor[0]);
  for (int c = 1; c < 14; ++c) p = hn::Add(hn::Mul(p, r), hn::Set(d, kExpTaylor[c]));
  const auto exponent = hn::ShiftLeft<52>(hn::BitCast(du, shifted));
  p = hn::BitCast(d, hn::Add(hn::BitCast(du, p), exponent));
  return hn::IfThenElse(hn::Ge(x, hn::Set(d, kSmallestExponent)), p, hn::Zero(d));
}
#endif

void SoftmaxWeightsImpl(const float* logits, int64_t values, double largest, double inverse,
                        double* weights) {
  int64_t i = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  for (; i + kWideLanes <= values; i += kWideLanes) {
    hn::StoreU(Weights(Exponents(logits + i, largest, inverse)), F64(), weights + i);
  }
#endif
  for (; i < values; ++i) {
    weights[i] = SoftmaxWeight((static_cast<double>(logits[i]) - largest) * inverse);
  }
}

void WeightLanesImpl(const float* logits, int64_t values, double largest, double inverse,
                     bool weighted, double* lanes, double* weighted_lanes) {
  int64_t i = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const F64 d;
  // The eight lanes are one vector, or two: first and last.
  constexpr int64_t kLast = 8 - kWideLanes;
  const auto weigh = [&](int64_t at, VF64* sum, VF64* weighted_sum) {
    const VF64 x = Exponents(logits + at, largest, inverse);
    const VF64 weight = Weights(x);
    *sum = hn::Add(*sum, weight);
    if (!weighted) return;
    const VF64 product = hn::Mul(weight, x);
    *weighted_sum =
        hn::Add(*weighted_sum, hn::IfThenElseZero(hn::Ne(weight, hn::Zero(d)), product));
  };
  VF64 first = hn::LoadU(d, lanes), last = hn::LoadU(d, lanes + kLast);
  VF64 weighted_first = hn::LoadU(d, weighted_lanes);
  VF64 weighted_last = hn::LoadU(d, weighted_lanes + kLast);
  for (; i + 8 <= values; i += 8) {
    weigh(i, &first, &weighted_first);
    if (kLast > 0) weigh(i + kLast, &last, &weighted_last);
  }
  hn::StoreU(first, d, lanes);
  hn::StoreU(weighted_first, d, weighted_lanes);
  if (kLast > 0) {
    hn::StoreU(last, d, lanes + kLast);
    hn::StoreU(weighted_last, d, weighted_lanes + kLast);
  }
#endif
  for (; i < values; ++i) {
    const double x = (static_cast<double>(logits[i]) - largest) * inverse;
    const double weight = SoftmaxWeight(x);
    lanes[i % 8] += weight;
    if (weighted) weighted_lanes[i % 8] += WeightedExponent(weight, x);
  }
}

int64_t CollectRangeImpl(const float* logits, int64_t values, float low, float high, int32_t* ids) {
  int64_t count = 0, i = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const F32 d;
  const I32 di;
  const auto first = hn::Iota(di, 0);
  for (; i + kLanes <= values; i += kLanes) {
    const VF32 x = hn::LoadU(d, logits + i);
    const auto hit = hn::And(hn::Ge(x, hn::Set(d, low)), hn::Lt(x, hn::Set(d, high)));
    if (hn::AllFalse(d, hit)) continue;
    const auto index = hn::Add(first, hn::Set(di, static_cast<int32_t>(i)));
    count +=
        static_cast<int64_t>(hn::CompressStore(index, hn::RebindMask(di, hit), di, ids + count));
  }
#endif
  for (; i < values; ++i) {
    if (logits[i] >= low && logits[i] < high) ids[count++] = static_cast<int32_t>(i);
  }
  return count;
}

// base/counter_rng.h on as many ids as there are lanes. A 32-bit word lies in the low half of a
// 64-bit lane; multiplications ignore the high half, so it is cleared only at the end.
void UniformDrawsImpl(uint64_t seed, uint32_t index, uint32_t position, const int32_t* ids,
                      int64_t count, double* uniform) {
  int64_t i = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const hn::CappedTag<double, 8> d;
  const hn::RebindToUnsigned<decltype(d)> d64;
  const hn::Repartition<uint32_t, decltype(d64)> d32;
  const hn::Rebind<uint32_t, decltype(d64)> d_ids;
  constexpr int64_t kStep = static_cast<int64_t>(hn::MaxLanes(d));
  // Multipliers and Weyl constants of Salmon et al., SC 2011, table 2.
  const auto multiplier_0 = hn::BitCast(d32, hn::Set(d64, 0xD2511F53));
  const auto multiplier_1 = hn::BitCast(d32, hn::Set(d64, 0xCD9E8D57));
  const auto low_half = hn::Set(d64, 0xFFFFFFFF);
  const auto two_52 = hn::Set(d, 0x1.0p52);
  for (; i + kStep <= count; i += kStep) {
    auto c0 = hn::PromoteTo(d64, hn::LoadU(d_ids, reinterpret_cast<const uint32_t*>(ids) + i));
    auto c1 = hn::Set(d64, uint64_t{position});
    auto c2 = hn::Set(d64, uint64_t{index});
    auto c3 = hn::Zero(d64);
    auto key_0 = static_cast<uint32_t>(seed), key_1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const auto p0 = hn::MulEven(multiplier_0, hn::BitCast(d32, c0));
      const auto p1 = hn::MulEven(multiplier_1, hn::BitCast(d32, c2));
      c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(d64, uint64_t{key_0}));
      c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(d64, uint64_t{key_1}));
      c1 = p1;
      c3 = p0;
      key_0 += 0x9E3779B9;
      key_1 += 0xBB67AE85;
    }
    const auto word = hn::Or(hn::ShiftLeft<32>(c0), hn::And(c1, low_half));
    // 52 bits as the mantissa of a number from 2^52 on.
    const auto bits = hn::Or(hn::ShiftRight<12>(word), hn::BitCast(d64, two_52));
    const auto whole = hn::Sub(hn::BitCast(d, bits), two_52);
    hn::StoreU(hn::Mul(hn::Add(whole, hn::Set(d, 0.5)), hn::Set(d, 0x1.0p-52)), d, uniform + i);
  }
#endif
  for (; i < count; ++i) {
    uniform[i] = UniformDraw(seed, index, position, static_cast<uint32_t>(ids[i]));
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

int64_t CollectRange(CpuTarget target, const float* logits, int64_t values, float low, float high,
                     int32_t* ids) {
  return PERGOLA_CHOOSE(target, CollectRangeImpl)(logits, values, low, high, ids);
}

void UniformDraws(CpuTarget target, uint64_t seed, uint32_t index, uint32_t position,
                  const int32_t* ids, int64_t count, double* uniform) {
  PERGOLA_CHOOSE(target, UniformDrawsImpl)(seed, index, position, ids, count, uniform);
}

void SoftmaxWeights(CpuTarget target, const float* logits, int64_t values, double largest,
                    double inverse, double* weights) {
  PERGOLA_CHOOSE(target, SoftmaxWeightsImpl)(logits, values, largest, inverse, weights);
}

void WeightLanes(CpuTarget target, const float* logits, int64_t values, double largest,
                 double inverse, bool weighted, double* lanes, double* weighted_lanes) {
  PERGOLA_CHOOSE(target, WeightLanesImpl)
  (logits, values, largest, inverse, weighted, lanes, weighted_lanes);
}

}  // namespace pergola
#endif  // HWY_ONCE
