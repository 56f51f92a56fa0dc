// Decodes one (panel, block) of a quantised matrix to f32 [32 k][32 outputs]. The values are
// exactly those of DecodeToF32: scale * q is exact in f32, and q4_1 adds its minimum with one
// rounding.
#if defined(PERGOLA_KERNELS_CPU_QUANT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERGOLA_KERNELS_CPU_QUANT_INL_H_
#undef PERGOLA_KERNELS_CPU_QUANT_INL_H_
#else
#define PERGOLA_KERNELS_CPU_QUANT_INL_H_
#endif

#include "kernels/cpu/math-inl.h"
#include "kernels/packed_layout.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

// Nibble `shift / 4` of each lane as f32, less `bias` (0 or 8). `table` holds i - bias for i in
// 0..15 where the target looks up 16 lanes at once; the lookup ignores all but the four low bits of
// a lane.
template <int kShift>
HWY_INLINE VF32 Nibble(hn::Vec<U32> word, VF32 table, float bias) {
  const F32 d;
  const U32 du;
  const auto low = kShift == 0 ? word : hn::ShiftRight<kShift>(word);
#if HWY_TARGET == HWY_AVX3
  (void)d;
  (void)du;
  (void)bias;
  return VF32{_mm512_permutexvar_ps(low.raw, table.raw)};
#else
  (void)table;
  const auto q = hn::BitCast(I32(), hn::And(low, hn::Set(du, 15)));
  return hn::Sub(hn::ConvertTo(d, q), hn::Set(d, bias));
#endif
}

HWY_INLINE VF32 NibbleTable(float bias) {
  const F32 d;
  return hn::Sub(hn::Iota(d, 0.0F), hn::Set(d, bias));
}

template <bool kMinimum>
HWY_INLINE void DecodeNibbles(const uint8_t* block, float* out) {
  const F32 d;
  const U32 du;
  const float bias = kMinimum ? 0.0F : 8.0F;
  const VF32 table = NibbleTable(bias);
  const auto* header = reinterpret_cast<const uint16_t*>(block);
  const auto* words = reinterpret_cast<const uint32_t*>(
      block + QuantHeaderBytes(kMinimum ? DType::kQ4_1 : DType::kQ4_0));
  for (int64_t c = 0; c < kPanelColumns; c += kLanes) {
    const VF32 scale = LoadF16(header + c);
    const VF32 minimum = kMinimum ? LoadF16(header + kPanelColumns + c) : hn::Zero(d);
    const auto store = [&](VF32 q, float* to) HWY_ATTR {
      hn::Store(kMinimum ? Fma(scale, q, minimum) : hn::Mul(scale, q), d, to);
    };
    for (int64_t g = 0; g < 4; ++g) {
      const auto word = hn::Load(du, words + g * kPanelColumns + c);
      float* to = out + 8 * g * kPanelColumns + c;
      store(Nibble<0>(word, table, bias), to);
      store(Nibble<8>(word, table, bias), to + kPanelColumns);
      store(Nibble<16>(word, table, bias), to + 2 * kPanelColumns);
      store(Nibble<24>(word, table, bias), to + 3 * kPanelColumns);
      store(Nibble<4>(word, table, bias), to + 4 * kPanelColumns);
      store(Nibble<12>(word, table, bias), to + 5 * kPanelColumns);
      store(Nibble<20>(word, table, bias), to + 6 * kPanelColumns);
      store(Nibble<28>(word, table, bias), to + 7 * kPanelColumns);
    }
  }
}

HWY_INLINE void DecodeBytes(const uint8_t* block, float* out) {
  const F32 d;
  const I32 di;
  const auto* header = reinterpret_cast<const uint16_t*>(block);
  const auto* words = reinterpret_cast<const int32_t*>(block + QuantHeaderBytes(DType::kQ8_0));
  for (int64_t c = 0; c < kPanelColumns; c += kLanes) {
    const VF32 scale = LoadF16(header + c);
    for (int64_t g = 0; g < 8; ++g) {
      const auto word = hn::Load(di, words + g * kPanelColumns + c);
      float* to = out + 4 * g * kPanelColumns + c;
      const auto q0 = hn::ShiftRight<24>(hn::ShiftLeft<24>(word));
      const auto q1 = hn::ShiftRight<24>(hn::ShiftLeft<16>(word));
      const auto q2 = hn::ShiftRight<24>(hn::ShiftLeft<8>(word));
      const auto q3 = hn::ShiftRight<24>(word);
      hn::Store(hn::Mul(scale, hn::ConvertTo(d, q0)), d, to);
      hn::Store(hn::Mul(scale, hn::ConvertTo(d, q1)), d, to + kPanelColumns);
      hn::Store(hn::Mul(scale, hn::ConvertTo(d, q2)), d, to + 2 * kPanelColumns);
      hn::Store(hn::Mul(scale, hn::ConvertTo(d, q3)), d, to + 3 * kPanelColumns);
    }
  }
}

HWY_INLINE void DecodeQuantPanelBlock(DType dtype, const uint8_t* block, float* out) {
  if (dtype == DType::kQ8_0) {
    DecodeBytes(block, out);
  } else if (dtype == DType::kQ4_0) {
    DecodeNibbles<false>(block, out);
  } else {
    DecodeNibbles<true>(block, out);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#endif
