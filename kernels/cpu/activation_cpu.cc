// Activate and SoftCap: each value from one value, or from two.
#include "kernels/cpu/decoder_ops_cpu.h"
#include "kernels/cpu/for_rows.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation_cpu.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

HWY_INLINE VF32 Silu(VF32 x) {
  const F32 d;
  return hn::Div(x, hn::Add(hn::Set(d, 1.0F), Exp(hn::Neg(x))));
}

// x / (1 + exp(t)) with t = -2 sqrt(2 / pi) (x + 0.044715 x^3).
HWY_INLINE VF32 GeluTanh(VF32 x) {
  const F32 d;
  const VF32 linear = hn::Set(d, -1.5957691216057308F);
  const VF32 cubic = hn::Set(d, -1.5957691216057308F * 0.044715F);
  const VF32 t = hn::Mul(Fma(hn::Mul(x, x), cubic, linear), x);
  return hn::Div(x, hn::Add(hn::Set(d, 1.0F), Exp(t)));
}

// x Phi(x). With z = |x| / sqrt(2): erfc(z) = s P(s) exp(-z^2), s = 1 / (1 + 0.35 z), P of degree 9
// fitted (reweighted least squares on Chebyshev points against erfcx, z up to 9.5) to 2^-27.1
// relative; Phi is half of it below zero and one minus that above.
HWY_INLINE VF32 GeluErf(VF32 x) {
  const F32 d;
  constexpr float kP[10] = {
      1.974882183e-01F, 1.970582212e-01F,  1.885243710e-01F, 1.484587997e-01F,  1.534980738e-01F,
      7.382176252e-02F, -1.255661079e-02F, 1.705676926e-01F, -1.544680492e-01F, 3.760752758e-02F};
  const VF32 one = hn::Set(d, 1.0F);
  const VF32 z = hn::Mul(hn::Abs(x), hn::Set(d, 0.70710678F));
  const VF32 s = hn::Div(one, Fma(z, hn::Set(d, 0.35F), one));
  VF32 p = hn::Set(d, kP[9]);
  for (int i = 8; i >= 0; --i) p = Fma(p, s, hn::Set(d, kP[i]));
  const VF32 square = hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5F));
  const VF32 tail = hn::Mul(hn::Mul(hn::Mul(p, s), hn::Set(d, 0.5F)), Exp(square));
  const VF32 phi = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail));
  return hn::Mul(x, phi);
}

// tanh: below 1/2 its series to z^17 (the next term is below 2^-26 of z), else 1 - 2 / (exp(2z) +
// 1), with the sign of z.
HWY_INLINE VF32 Tanh(VF32 z) {
  const F32 d;
  constexpr float kSeries[8] = {
      -1.0F / 3,         2.0F / 15,          -17.0F / 315,           62.0F / 2835,
      -1382.0F / 155925, 21844.0F / 6081075, -929569.0F / 638512875, 6404582.0F / 10854718875};
  const VF32 square = hn::Mul(z, z);
  VF32 p = hn::Set(d, kSeries[7]);
  for (int i = 6; i >= 0; --i) p = Fma(p, square, hn::Set(d, kSeries[i]));
  const VF32 near = Fma(hn::Mul(p, square), z, z);
  const VF32 size = hn::Abs(z);
  const VF32 one = hn::Set(d, 1.0F);
  const VF32 above = hn::Add(Exp(hn::Add(size, size)), one);
  const VF32 far = hn::CopySign(hn::Sub(one, hn::Div(hn::Set(d, 2.0F), above)), z);
  const VF32 tanh = hn::IfThenElse(hn::Lt(size, hn::Set(d, 0.5F)), near, far);
  return hn::IfThenElse(hn::Eq(z, z), tanh, z);
}

// Applies `f` to the vectors of one row of `size` values, the last one padded.
template <typename F>
HWY_INLINE void MapRow(const float* x, const float* up, int64_t size, float* y, const F& f) {
  const F32 d;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const VF32 value = f(hn::LoadU(d, x + i));
    hn::StoreU(up == nullptr ? value : hn::Mul(value, hn::LoadU(d, up + i)), d, y + i);
  }
  if (i == size) return;
  HWY_ALIGN float tail[3][kLanes] = {};
  for (int64_t j = i; j < size; ++j) {
    tail[0][j - i] = x[j];
    if (up != nullptr) tail[1][j - i] = up[j];
  }
  const VF32 value = f(hn::Load(d, tail[0]));
  hn::Store(up == nullptr ? value : hn::Mul(value, hn::Load(d, tail[1])), d, tail[2]);
  for (int64_t j = i; j < size; ++j) y[j] = tail[2][j - i];
}

void ActivateRow(const ActivateArgs& args, int64_t row) {
  const int64_t width = args.y.dim(1);
  const float* x = args.x.f32() + row * args.x.dim(1);
  const float* up = args.gated ? x + width : nullptr;
  float* y = args.y.f32() + row * width;
  switch (args.activation) {
    case Activation::kSilu:
      return MapRow(x, up, width, y, [](VF32 v) { return Silu(v); });
    case Activation::kGeluTanh:
      return MapRow(x, up, width, y, [](VF32 v) { return GeluTanh(v); });
    case Activation::kGeluErf:
      return MapRow(x, up, width, y, [](VF32 v) { return GeluErf(v); });
  }
}

void SoftCapRow(const SoftCapArgs& args, int64_t row) {
  const F32 d;
  const VF32 cap = hn::Set(d, args.cap);
  float* x = args.x.f32() + row * args.x.dim(1);
  MapRow(x, nullptr, args.x.dim(1), x, [&](VF32 v) { return hn::Mul(Tanh(hn::Div(v, cap)), cap); });
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pergola {

void ActivateCpu(CpuStream& stream, const ActivateArgs& args) {
  ForRows(stream, 4 * args.y.dim(1), args.y.dim(0), args,
          PERGOLA_CHOOSE(stream.target(), ActivateRow));
}

void SoftCapCpu(CpuStream& stream, const SoftCapArgs& args) {
  ForRows(stream, 2 * args.x.dim(1), args.x.dim(0), args,
          PERGOLA_CHOOSE(stream.target(), SoftCapRow));
}

}  // namespace pergola
#endif  // HWY_ONCE
