// Vector arithmetic whose bits are the same on every target: a true fused multiply-add, one
// exponential, loads that widen. Included once per target by the CPU sources, after hwy/highway.h.
#if defined(PERGOLA_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERGOLA_KERNELS_CPU_MATH_INL_H_
#undef PERGOLA_KERNELS_CPU_MATH_INL_H_
#else
#define PERGOLA_KERNELS_CPU_MATH_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "model/dtype.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes: the fixed order of 16-lane sums is an AVX-512 register.
using F32 = hn::CappedTag<float, 16>;
using VF32 = hn::Vec<F32>;
using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;
inline constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(F32()));
static_assert(16 % kLanes == 0, "the fixed order of 16-lane sums needs whole vectors");

// a * b + c, rounded once. Where the target has no such instruction, through the C library, which
// is exact and slow.
HWY_INLINE VF32 Fma(VF32 a, VF32 b, VF32 c) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  const F32 d;
  HWY_ALIGN float x[kLanes], y[kLanes], z[kLanes];
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (int64_t i = 0; i < kLanes; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, z);
#else
  return hn::MulAdd(a, b, c);
#endif
}

// e^x. Cody and Waite's reduction by n = round(x / ln 2) and the Taylor polynomial of degree 7 on
// |r| <= ln(2)/2, whose remainder r^8/8! is below 2^-27.5; with the roundings of seven
// multiply-adds the error is below 2 ulp. Below -87.33 the result (under 2^-126) is 0, above 88.72
// infinity; NaN stays NaN; e^0 is 1 exactly.
HWY_INLINE VF32 Exp(VF32 x) {
  const F32 d;
  const I32 di;
  const VF32 magic = hn::Set(d, 12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer
  const VF32 shifted = Fma(x, hn::Set(d, 1.44269504F), magic);
  const VF32 n = hn::Sub(shifted, magic);
  VF32 r =
      Fma(n, hn::Set(d, -0x1.62e400p-1F), x);  // ln 2 cut to 15 bits, so that n times it is exact
  r = Fma(n, hn::Set(d, -0x1.7f7d1cp-20F), r);
  VF32 p = hn::Set(d, 1.0F / 5040);
  p = Fma(p, r, hn::Set(d, 1.0F / 720));
  p = Fma(p, r, hn::Set(d, 1.0F / 120));
  p = Fma(p, r, hn::Set(d, 1.0F / 24));
  p = Fma(p, r, hn::Set(d, 1.0F / 6));
  p = Fma(p, r, hn::Set(d, 0.5F));
  p = Fma(p, r, hn::Set(d, 1.0F));
  p = Fma(p, r, hn::Set(d, 1.0F));
  // The low bits of `shifted` are n: added to the exponent of p they scale by 2^n.
  const auto exponent = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  VF32 e = hn::BitCast(d, hn::Add(hn::BitCast(di, p), exponent));
  e = hn::IfThenElse(hn::Lt(x, hn::Set(d, -87.33F)), hn::Zero(d), e);
  e = hn::IfThenElse(hn::Gt(x, hn::Set(d, 88.72F)),
                     hn::Set(d, std::numeric_limits<float>::infinity()), e);
  return hn::IfThenElse(hn::Eq(x, x), e, x);
}

// kLanes consecutive f16 values, widened.
HWY_INLINE VF32 LoadF16(const uint16_t* p) {
  const F32 d;
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
  HWY_ALIGN float wide[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) wide[i] = F16ToF32(p[i]);
  return hn::Load(d, wide);
#else
  const hn::Rebind<hwy::float16_t, F32> dh;
  return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(p)));
#endif
}

// kLanes consecutive bf16 values, widened.
HWY_INLINE VF32 LoadBF16(const uint16_t* p) {
  const F32 d;
  const U32 du;
  const hn::Rebind<uint16_t, F32> dh;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, p))));
}

// Decodes `values` (f32, f16 or bf16) to `out`.
HWY_INLINE void WidenValues(DType dtype, const uint8_t* source, int64_t values, float* out) {
  const F32 d;
  const auto* half = reinterpret_cast<const uint16_t*>(source);
  int64_t i = 0;
  if (dtype == DType::kF32) {
    const auto* full = reinterpret_cast<const float*>(source);
    for (; i + kLanes <= values; i += kLanes) hn::StoreU(hn::LoadU(d, full + i), d, out + i);
    for (; i < values; ++i) out[i] = full[i];
  } else if (dtype == DType::kF16) {
    for (; i + kLanes <= values; i += kLanes) hn::StoreU(LoadF16(half + i), d, out + i);
    for (; i < values; ++i) out[i] = F16ToF32(half[i]);
  } else {
    for (; i + kLanes <= values; i += kLanes) hn::StoreU(LoadBF16(half + i), d, out + i);
    for (; i < values; ++i) out[i] = BF16ToF32(half[i]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#endif
