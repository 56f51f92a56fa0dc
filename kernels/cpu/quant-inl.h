// Decodes a piece of 32 k of one panel of a quantised matrix to f32 [32 k][32 outputs].
//
// Every format is the same walk: eight words, each with the quants of four k in its four bytes, go
// through value = scale * number(quant) + offset with a scale (and offset) for all or for half of
// the piece. A format says where its words and scales lie. The values are exactly those of
// DecodeToF32 (a zero's sign aside, which no sum can see): products are exact in f32, so fused or
// not makes no difference.
#if defined(PERGOLA_KERNELS_CPU_QUANT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERGOLA_KERNELS_CPU_QUANT_INL_H_
#undef PERGOLA_KERNELS_CPU_QUANT_INL_H_
#else
#define PERGOLA_KERNELS_CPU_QUANT_INL_H_
#endif

#include "base/check.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/packed_layout.h"
#include "model/quant_blocks.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

using VU32 = hn::Vec<U32>;

// One vector of columns of a (panel, block).
struct QuantView {
  const uint8_t* halves;
  const uint8_t* words;

  QuantView(DType dtype, const uint8_t* block, int64_t column)
      : halves(block + 2 * column), words(block + QuantHeaderBytes(dtype) + 4 * column) {}
  VF32 Half(int64_t i) const {
    return LoadF16(reinterpret_cast<const uint16_t*>(halves + 2 * i * kPanelColumns));
  }
  VU32 Word(int64_t i) const {
    return hn::Load(U32(), reinterpret_cast<const uint32_t*>(words + 4 * i * kPanelColumns));
  }
};

struct ScaleOffset {
  VF32 scale, offset;  // no offset: not read
};

HWY_INLINE VU32 Shifted(VU32 word, int64_t bits) {
  return hn::Shr(word, hn::Set(U32(), static_cast<uint32_t>(bits)));
}
HWY_INLINE VU32 Masked(VU32 word, uint32_t mask) {
  return hn::And(word, hn::Set(U32(), mask));
}
// (word >> bits) & mask as a number.
HWY_INLINE VF32 SmallNumber(VU32 word, int64_t bits, uint32_t mask) {
  return hn::ConvertTo(F32(), hn::BitCast(I32(), Masked(Shifted(word, bits), mask)));
}

// The numbers of quants of up to 5 bits: less kBias, or iq4_nl's.
template <int kBias, bool kIq4>
struct NumberTable {
  alignas(64) float values[32];

  constexpr NumberTable() : values() {
    for (int i = 0; i < 32; ++i) {
      values[i] = static_cast<float>(kIq4 ? kIq4Values[i % 16] : i - kBias);
    }
  }
};

// How a quant of 4 or 5 bits becomes a number; bits above are ignored.
template <int kBits, int kBias, bool kIq4 = false>
struct TableNumber {
  static constexpr NumberTable<kBias, kIq4> kTable = {};
#if HWY_TARGET == HWY_AVX3
  VF32 low, high;

  TableNumber() : low(hn::Load(F32(), kTable.values)), high(hn::Load(F32(), kTable.values + 16)) {}
  VF32 Of(VU32 quant) const {
    if (kBits == 4) return VF32{_mm512_permutexvar_ps(quant.raw, low.raw)};
    return VF32{_mm512_permutex2var_ps(low.raw, quant.raw, high.raw)};
  }
#else
  VF32 Of(VU32 quant) const {
    const F32 d;
    const auto q = hn::BitCast(I32(), Masked(quant, (1U << kBits) - 1));
    if (kIq4) return hn::GatherIndex(d, kTable.values, q);
    return hn::Sub(hn::ConvertTo(d, q), hn::Set(d, kBias));
  }
#endif
  template <int kShift>
  VF32 At(VU32 word) const {
    return Of(hn::ShiftRight<kShift>(word));
  }
};

struct SignedByteNumber {
  template <int kShift>
  VF32 At(VU32 word) const {
    const auto top = hn::BitCast(I32(), hn::ShiftLeft<24 - kShift>(word));
    return hn::ConvertTo(F32(), hn::ShiftRight<24>(top));
  }
};

// 1 + q / 64, by putting the six bits of q below the exponent of 1.
struct SixBitNumber {
  template <int kShift>
  VF32 At(VU32 word) const {
    const U32 du;
    const VU32 placed = kShift < 17 ? hn::ShiftLeft < kShift < 17 ? 17 - kShift : 0 > (word)
                        : hn::ShiftRight < kShift < 17 ? 0
                                                       : kShift - 17 > (word);
    return hn::BitCast(F32(),
                       hn::OrAnd(hn::Set(du, 0x3F800000), placed, hn::Set(du, uint32_t{63} << 17)));
  }
};

// Blocks of 32. Bytes 4w.. of the quants are values 4w.. (low nibbles) and 16 + 4w.. (high ones).
template <DType kType>
struct SmallFormat {
  static constexpr DType kDType = kType;
  static constexpr bool kFifth = kType == DType::kQ5_0 || kType == DType::kQ5_1;
  static constexpr bool kOffset = kType == DType::kQ4_1 || kType == DType::kQ5_1;
  static constexpr int kBias = kOffset ? 0 : kFifth ? 16 : 8;
  static constexpr int kScaleWords = 8;
  using Number = TableNumber<kFifth ? 5 : 4, kBias, kType == DType::kIQ4_NL>;

  static ScaleOffset Scales(const QuantView& view, int64_t /*piece*/, int64_t /*group*/) {
    return {view.Half(0), kOffset ? view.Half(1) : hn::Zero(F32())};
  }
  static VU32 Quants(const QuantView& view, int64_t /*piece*/, int64_t w) {
    const VU32 nibbles = view.Word((kFifth ? 1 : 0) + w % 4);
    const VU32 low = w < 4 ? nibbles : hn::ShiftRight<4>(nibbles);
    if (!kFifth) return low;
    // Bits 4w.. of the first word become bit 4 of each byte: the product has bit b at 8b + 4.
    const VU32 four = Masked(Shifted(view.Word(0), 4 * w), 15);
    const VU32 spread = hn::Mul(four, hn::Set(U32(), 0x02040810U));
    return hn::Or(Masked(low, 0x0F0F0F0FU), Masked(spread, 0x10101010U));
  }
};

struct Q8Format {
  static constexpr DType kDType = DType::kQ8_0;
  static constexpr bool kOffset = false;
  static constexpr int kScaleWords = 8;
  using Number = SignedByteNumber;

  static ScaleOffset Scales(const QuantView& view, int64_t /*piece*/, int64_t /*group*/) {
    return {view.Half(0), hn::Zero(F32())};
  }
  static VU32 Quants(const QuantView& view, int64_t /*piece*/, int64_t w) { return view.Word(w); }
};

// Words: 4 of scales and minima, 16 of quants.
struct Q2KFormat {
  static constexpr DType kDType = DType::kQ2_K;
  static constexpr bool kOffset = true;
  static constexpr int kScaleWords = 4;
  using Number = TableNumber<4, 0>;

  static ScaleOffset Scales(const QuantView& view, int64_t piece, int64_t group) {
    const int64_t i = 2 * piece + group;
    const VU32 word = view.Word(i / 4);
    return {hn::Mul(view.Half(0), SmallNumber(word, i % 4 * 8, 15)),
            hn::Neg(hn::Mul(view.Half(1), SmallNumber(word, i % 4 * 8 + 4, 15)))};
  }
  static VU32 Quants(const QuantView& view, int64_t piece, int64_t w) {
    return Masked(Shifted(view.Word(4 + piece / 4 * 8 + w), piece % 4 * 2), 0x03030303U);
  }
};

// Words: 8 of the third bits, 16 of the lower ones, 3 of scales.
struct Q3KFormat {
  static constexpr DType kDType = DType::kQ3_K;
  static constexpr bool kOffset = false;
  static constexpr int kScaleWords = 4;
  using Number = TableNumber<4, 4>;

  static ScaleOffset Scales(const QuantView& view, int64_t piece, int64_t group) {
    const int64_t i = 2 * piece + group;
    const VU32 low = Masked(Shifted(view.Word(24 + i % 8 / 4), i % 4 * 8 + i / 8 * 4), 15);
    const VU32 high = Masked(Shifted(view.Word(26), i % 4 * 8 + i / 4 * 2), 3);
    const auto six = hn::BitCast(I32(), hn::Or(low, hn::ShiftLeft<4>(high)));
    const VF32 scale = hn::ConvertTo(F32(), hn::Sub(six, hn::Set(I32(), 32)));
    return {hn::Mul(view.Half(0), scale), hn::Zero(F32())};
  }
  static VU32 Quants(const QuantView& view, int64_t piece, int64_t w) {
    const VU32 low = Shifted(view.Word(8 + piece / 4 * 8 + w), piece % 4 * 2);
    const VU32 high = Masked(Shifted(view.Word(w), piece), 0x01010101U);
    return hn::Or(Masked(low, 0x03030303U), hn::ShiftLeft<2>(high));
  }
};

// Words: 3 of scales and minima, of q5_k 8 of the fifth bits, 32 of nibbles.
template <bool kFifth>
struct Q45KFormat {
  static constexpr DType kDType = kFifth ? DType::kQ5_K : DType::kQ4_K;
  static constexpr bool kOffset = true;
  static constexpr int kScaleWords = 8;
  using Number = TableNumber<kFifth ? 5 : 4, 0>;

  // Six bits of scale or minimum `piece`: together in word `which` (0, 1), or for the last four
  // pieces the low ones in word 2.
  static VF32 SixBits(const QuantView& view, int64_t which, int64_t piece) {
    const VU32 word = view.Word(which);
    const int64_t byte = piece % 4 * 8;
    if (piece < 4) return SmallNumber(word, byte, 63);
    const VU32 low = Masked(Shifted(view.Word(2), byte + 4 * which), 15);
    const VU32 high = Masked(Shifted(word, byte + 6), 3);
    return hn::ConvertTo(F32(), hn::BitCast(I32(), hn::Or(low, hn::ShiftLeft<4>(high))));
  }
  static ScaleOffset Scales(const QuantView& view, int64_t piece, int64_t /*group*/) {
    return {hn::Mul(view.Half(0), SixBits(view, 0, piece)),
            hn::Neg(hn::Mul(view.Half(1), SixBits(view, 1, piece)))};
  }
  static VU32 Quants(const QuantView& view, int64_t piece, int64_t w) {
    const VU32 low = Shifted(view.Word((kFifth ? 11 : 3) + piece / 2 * 8 + w), piece % 2 * 4);
    if (!kFifth) return low;
    const VU32 high = Masked(Shifted(view.Word(3 + w), piece), 0x01010101U);
    return hn::Or(Masked(low, 0x0F0F0F0FU), hn::ShiftLeft<4>(high));
  }
};

// Words: 32 of nibbles, 16 of the upper two bits, 4 of scales.
struct Q6KFormat {
  static constexpr DType kDType = DType::kQ6_K;
  static constexpr bool kOffset = true;
  static constexpr int kScaleWords = 4;
  using Number = SixBitNumber;

  // s (q - 32) = 64 s (1 + q / 64) - 96 s, all exact.
  static ScaleOffset Scales(const QuantView& view, int64_t piece, int64_t group) {
    const F32 d;
    const int64_t i = 2 * piece + group;
    const VU32 top = hn::Shl(view.Word(48 + i / 4), hn::Set(U32(), 24 - i % 4 * 8));
    const auto scale = hn::ShiftRight<24>(hn::BitCast(I32(), top));
    const VF32 s = hn::Mul(view.Half(0), hn::ConvertTo(d, scale));
    return {hn::Mul(s, hn::Set(d, 64.0F)), hn::Mul(s, hn::Set(d, -96.0F))};
  }
  static VU32 Quants(const QuantView& view, int64_t piece, int64_t w) {
    const int64_t half = piece / 4;
    const VU32 low = Shifted(view.Word(half * 16 + piece % 2 * 8 + w), piece % 4 / 2 * 4);
    const VU32 high = Masked(Shifted(view.Word(32 + half * 8 + w), piece % 4 * 2), 0x03030303U);
    return hn::Or(Masked(low, 0x0F0F0F0FU), hn::ShiftLeft<4>(high));
  }
};

template <class Format>
HWY_NOINLINE void DecodePiece(const uint8_t* block, int64_t piece, float* out) {
  const F32 d;
  const typename Format::Number number;
  constexpr int64_t kGroup = Format::kScaleWords;
  for (int64_t c = 0; c < kPanelColumns; c += kLanes) {
    const QuantView view(Format::kDType, block, c);
    float* to = out + c;
    const auto store = [&](const ScaleOffset& s, VF32 value) HWY_ATTR {
      hn::Store(Format::kOffset ? Fma(s.scale, value, s.offset) : hn::Mul(s.scale, value), d, to);
      to += kPanelColumns;
    };
#pragma GCC unroll 2
    for (int64_t group = 0; group < 8 / kGroup; ++group) {
      const ScaleOffset scales = Format::Scales(view, piece, group);
#pragma GCC unroll 8
      for (int64_t w = group * kGroup; w < (group + 1) * kGroup; ++w) {
        const VU32 word = Format::Quants(view, piece, w);
        store(scales, number.template At<0>(word));
        store(scales, number.template At<8>(word));
        store(scales, number.template At<16>(word));
        store(scales, number.template At<24>(word));
      }
    }
  }
}

using DecodePieceFunction = void (*)(const uint8_t* block, int64_t piece, float* out);

// The decoder of piece `piece` (of BlockValues / 32) of one (panel, block).
HWY_INLINE DecodePieceFunction DecoderOf(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return DecodePiece<Q8Format>;
    case DType::kQ4_0:
      return DecodePiece<SmallFormat<DType::kQ4_0>>;
    case DType::kQ4_1:
      return DecodePiece<SmallFormat<DType::kQ4_1>>;
    case DType::kQ5_0:
      return DecodePiece<SmallFormat<DType::kQ5_0>>;
    case DType::kQ5_1:
      return DecodePiece<SmallFormat<DType::kQ5_1>>;
    case DType::kIQ4_NL:
      return DecodePiece<SmallFormat<DType::kIQ4_NL>>;
    case DType::kQ2_K:
      return DecodePiece<Q2KFormat>;
    case DType::kQ3_K:
      return DecodePiece<Q3KFormat>;
    case DType::kQ4_K:
      return DecodePiece<Q45KFormat<false>>;
    case DType::kQ5_K:
      return DecodePiece<Q45KFormat<true>>;
    case DType::kQ6_K:
      return DecodePiece<Q6KFormat>;
    default:
      PERGOLA_CHECK(false);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#endif
