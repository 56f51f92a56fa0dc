// How kernels read weights: one Format per dtype, all with the same shape, so that a product, a
// decoder of rows and an embedding are written once. The layout is kernels/cuda/matrix_layout.h's.
//
// A lane t of four reads its share of one unit of one row (Raw: 32 values of 128, or 64 of 256) in
// loads of up to 16 bytes, then takes octets of 8 values out of it, chunk p by chunk p:
//   Pairs   the integers q as 16-bit floats, two in a word, exactly, ready to be a fragment
//   Values  the integers (or the dense values) as f32
//   Scales  of the first and of the second four values: value = s q + m, one rounding, as the
//           format's definition (model/quant_blocks.h) has it
//
// Integers become floats without conversion instructions, which are slow: q is set into the low
// bits of a float whose unit in the last place is one (128 + q in bf16, 1024 + q in f16, 2^23 + q
// in f32) and the constant is subtracted again, both exact. e4m3's sign, exponent and mantissa are
// moved to their places in the wider float; the exponent's bias is made right by a product with a
// power of two, exact too, as the wider float holds e4m3's subnormal numbers.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/matrix_layout.h"

namespace pergola {

template <typename A>
struct PairOf;
template <>
struct PairOf<__half> {
  using Type = __half2;
  static constexpr uint32_t kMagic = 0x64006400;  // 1024
  static constexpr uint32_t kMagicBits = 0x6400;
};
template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  static constexpr uint32_t kMagic = 0x43004300;  // 128
  static constexpr uint32_t kMagicBits = 0x4300;
};

template <typename To, typename From>
__device__ __forceinline__ To Reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Two floats rounded into the halves of a word.
template <typename A>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  if constexpr (PairOf<A>::kMagicBits == 0x6400) {
    return Reinterpret<uint32_t>(__floats2half2_rn(low, high));
  } else {
    return Reinterpret<uint32_t>(__floats2bfloat162_rn(low, high));
  }
}
template <typename A>
__device__ __forceinline__ float PairLow(uint32_t pair) {
  return ToFloat<A>(Reinterpret<A>(static_cast<uint16_t>(pair & 0xffff)));
}
template <typename A>
__device__ __forceinline__ float PairHigh(uint32_t pair) {
  return ToFloat<A>(Reinterpret<A>(static_cast<uint16_t>(pair >> 16)));
}

// Halves that hold the constant plus an integer, less the constant and `offset`.
template <typename A>
__device__ __forceinline__ uint32_t TakeMagic(uint32_t pair, uint32_t offset) {
  using Pair = typename PairOf<A>::Type;
  const uint32_t subtract = PairOf<A>::kMagic + offset * 0x00010001U;
  return Reinterpret<uint32_t>(__hsub2(Reinterpret<Pair>(pair), Reinterpret<Pair>(subtract)));
}
// The unsigned integers (of at most 7 bits) in the halves of `pair`, less `offset`.
template <typename A>
__device__ __forceinline__ uint32_t IntegersToPair(uint32_t pair, uint32_t offset) {
  return TakeMagic<A>(pair | PairOf<A>::kMagic, offset);
}
// The same of the bits of `word` under `mask`.
template <typename A>
__device__ __forceinline__ uint32_t MaskedToPair(uint32_t word, uint32_t mask, uint32_t offset) {
  return TakeMagic<A>(AndOr(word, mask, PairOf<A>::kMagic), offset);
}

// The integer of at most 23 bits, less `offset`, as a float.
__device__ __forceinline__ float IntegerToFloat(uint32_t value, uint32_t offset) {
  return Reinterpret<float>(0x4b000000U | value) - Reinterpret<float>(0x4b000000U | offset);
}
// Byte `byte` of a word of signed bytes: that byte plus 128 below 2^23's exponent, by one permute.
__device__ __forceinline__ float SignedByte(uint32_t word, int byte) {
  const uint32_t bits = __byte_perm(word ^ 0x80808080U, 0x4b000000U, 0x7540U + byte);
  return Reinterpret<float>(bits) - 8388736.0F;  // 2^23 + 128
}

__device__ __forceinline__ float HalfBits(uint32_t bits) {
  return __half2float(Reinterpret<__half>(static_cast<uint16_t>(bits & 0xffff)));
}

// Two signed bytes, below the exponent of 128 in bf16.
__device__ __forceinline__ void BytesToPairs7(uint32_t bytes, uint32_t* pair) {
  using Pair = __nv_bfloat162;
  *pair = Reinterpret<uint32_t>(
      __hsub2(Reinterpret<Pair>(bytes & 0xff7fff7fU), Reinterpret<Pair>(bytes & 0xff80ff80U)));
}

// Four signed bytes.
template <typename A>
__device__ __forceinline__ void BytesToPairs(uint32_t word, uint32_t* pairs) {
  if constexpr (sizeof(A) == 2 && PairOf<A>::kMagicBits == 0x6400) {
    // 1024 + (q + 128) needs 8 bits of f16's 10.
    const uint32_t bytes = word ^ 0x80808080U;
    pairs[0] = TakeMagic<A>(__byte_perm(bytes, 0x64U, 0x4140U), 128);
    pairs[1] = TakeMagic<A>(__byte_perm(bytes, 0x64U, 0x4342U), 128);
  } else {
    // bf16's unit of one reaches only 7 bits: 128 + the lower seven, less 128 where the byte's sign
    // is 0 and 256 where it is 1, which is 128 with the sign in the lowest bit of the exponent.
    BytesToPairs7(__byte_perm(word, 0x43U, 0x4140U), &pairs[0]);
    BytesToPairs7(__byte_perm(word, 0x43U, 0x4342U), &pairs[1]);
  }
}

// Four e4m3.
template <typename A>
__device__ __forceinline__ void E4M3ToPairs(uint32_t word, uint32_t* pairs) {
  using Pair = typename PairOf<A>::Type;
  constexpr bool kF16 = PairOf<A>::kMagicBits == 0x6400;
  constexpr int kShift = kF16 ? 1 : 4;                           // of a byte in a half's top
  constexpr uint32_t kScale = kF16 ? 0x5c005c00U : 0x7b807b80U;  // 2^8, 2^120
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t tops = __byte_perm(word, 0U, i == 0 ? 0x1404U : 0x3424U);
    const uint32_t bits = (tops & 0x80008000U) | (tops & 0x7f007f00U) >> kShift;
    pairs[i] = Reinterpret<uint32_t>(__hmul2(Reinterpret<Pair>(bits), Reinterpret<Pair>(kScale)));
  }
}
// Byte `byte` of a word of e4m3.
__device__ __forceinline__ float E4M3Byte(uint32_t word, int byte) {
  const uint32_t top = word << (24 - 8 * byte);
  return Reinterpret<float>((top & 0x80000000U) | (top & 0x7f000000U) >> 4) * 0x1p120F;
}

// iq4_nl's values of two indices in the halves of a word.
__device__ __forceinline__ int Iq4Value(uint32_t index) {
  // kIq4Values, lowest index in the lowest byte.
  const uint64_t low = 0xf6eaddcfbfad9881ULL, high = 0x7159453526190d01ULL;
  const uint64_t half = (index & 8) != 0 ? high : low;
  return static_cast<int8_t>(half >> (8 * (index & 7)) & 0xff);
}

// Words from an address aligned to as many, up to four (three: to one).
template <int kWords>
__device__ __forceinline__ void LoadWords(uint32_t* words, const uint8_t* from) {
  if constexpr (kWords % 4 == 0) {
    const uint4 v = LoadOnce16(from);
    words[0] = v.x;
    words[1] = v.y;
    words[2] = v.z;
    words[3] = v.w;
  } else if constexpr (kWords == 2) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    words[0] = v.x;
    words[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = reinterpret_cast<const uint32_t*>(from)[i];
  }
}

// A lane's octets of a section of `kBits`.
template <int kUnit, int kBits>
struct Section {
  static constexpr int kLaneBytes = kUnit / 32 * kBits;
  static constexpr int kWords = (kLaneBytes + 3) / 4;
  static constexpr int kPiece = kLaneBytes < 16 ? kLaneBytes : 16;
  static __device__ __forceinline__ void Load(uint32_t (&words)[kWords], const uint8_t* section,
                                              int64_t unit, int t) {
    const uint8_t* from = section + unit * (4 * kLaneBytes) + t * kPiece;
#pragma unroll
    for (int i = 0; i < kLaneBytes / kPiece; ++i) {
      LoadWords<kPiece / 4>(&words[i * (kPiece / 4)], from + i * 4 * kPiece);
    }
  }
  // Integers 2 i and 2 i + 1 of octet p in the halves of a word; not for 8 bits.
  static __device__ __forceinline__ uint32_t Pair(const uint32_t (&words)[kWords], int p, int i) {
    if constexpr (kBits == 4) {
      return words[p] >> (4 * i) & 0x000f000fU;
    } else if constexpr (kBits == 2) {
      const uint32_t octet = words[p / 2] >> (16 * (p % 2));
      return ((octet & 0xff) | (octet & 0xff00) << 8) >> (2 * i) & 0x00030003U;
    } else {
      const uint32_t octet = words[p / 4] >> (8 * (p % 4));
      return ((octet & 0xf) | (octet & 0xf0) << 12) >> i & 0x00010001U;
    }
  }
};

// Which values of a unit octet (p, t) holds: four from First, four from Second.
template <DType kD>
struct OctetPlaces {
  static constexpr int kSub = CudaBlockFormatOf(kD).sub;
  static constexpr bool kRowScale = HasRowScale(kD);  // the caller's to apply
  static __device__ __forceinline__ int First(int p, int t) {
    if constexpr (kRowScale) return p / 2 * 64 + t * 16 + p % 2 * 8;
    return kSub == 32 ? 32 * p + 8 * t : 32 * p + 4 * t;
  }
  static __device__ __forceinline__ int Second(int p, int t) {
    return kSub == 32 ? First(p, t) + 4 : First(p, t) + 16;
  }
};

// Block formats.
template <DType kD>
struct Format : OctetPlaces<kD> {
  static constexpr CudaBlockFormat kFormat = CudaBlockFormatOf(kD);
  static constexpr int kUnit = kFormat.unit;
  static constexpr int kChunks = kUnit / 32;
  static constexpr bool kScaled = true;
  static constexpr bool kMinimum = kFormat.minimum;
  static constexpr bool kTwoScales = kFormat.sub == 16;
  static constexpr int kValueBits = kFormat.low_bits;
  static constexpr bool kBytes = kFormat.low_bits == 8;
  // What is taken off the unsigned integer.
  static constexpr uint32_t kOffset = kD == DType::kQ4_0   ? 8
                                      : kD == DType::kQ5_0 ? 16
                                      : kD == DType::kQ3_K ? 4
                                      : kD == DType::kQ6_K ? 32
                                                           : 0;
  using Low = Section<kUnit, kFormat.low_bits>;
  using High = Section<kUnit, kFormat.high_bits == 0 ? 1 : kFormat.high_bits>;
  static constexpr int kSmallWords = kFormat.small_bytes / 4;
  static constexpr int kHalfBytes = kFormat.half_bytes * (kUnit == 128 ? 4 : 1);
  static constexpr int kHalfWords = (kHalfBytes + 3) / 4;

  struct Raw {
    uint32_t low[Low::kWords];
    uint32_t high[kFormat.high_bits == 0 ? 1 : High::kWords];
    uint32_t small[kSmallWords == 0 ? 1 : kSmallWords];
    uint32_t halves[kHalfWords == 0 ? 1 : kHalfWords];
  };

  // kWhole: as in PlainFormat.
  template <bool kWhole = false>
  static __device__ __forceinline__ void Load(Raw& raw, const uint8_t* row,
                                              const CudaRowShape& shape, int64_t unit, int t) {
    Low::Load(raw.low, row, unit, t);
    if constexpr (kFormat.high_bits != 0) High::Load(raw.high, row + shape.high, unit, t);
    if constexpr (kSmallWords != 0) {
      LoadWords<kSmallWords>(raw.small, row + shape.small + unit * kFormat.small_bytes);
    }
    const uint8_t* halves = row + shape.halves + unit * kHalfBytes;
    if constexpr (kHalfBytes == 2) {
      raw.halves[0] = *reinterpret_cast<const uint16_t*>(halves);
    } else if constexpr (kHalfBytes != 0) {
      LoadWords<kHalfWords>(raw.halves, halves);
    }
  }

  static __device__ __forceinline__ uint32_t Integers(const Raw& raw, int p, int i) {
    uint32_t q = Low::Pair(raw.low, p, i);
    if constexpr (kFormat.high_bits != 0) q |= High::Pair(raw.high, p, i) << kFormat.low_bits;
    return q;
  }

  template <typename A>
  static __device__ __forceinline__ void Pairs(const Raw& raw, int p, uint32_t (&pairs)[4]) {
    if constexpr (kBytes) {
      BytesToPairs<A>(raw.low[2 * p], &pairs[0]);
      BytesToPairs<A>(raw.low[2 * p + 1], &pairs[2]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kFormat.low_bits == 4 && kFormat.high_bits == 0 && kD != DType::kIQ4_NL) {
          pairs[i] = MaskedToPair<A>(raw.low[p] >> (4 * i), 0x000f000fU, kOffset);
          continue;
        }
        const uint32_t q = Integers(raw, p, i);
        if constexpr (kD == DType::kIQ4_NL) {
          pairs[i] = PackPair<A>(static_cast<float>(Iq4Value(q & 15)),
                                 static_cast<float>(Iq4Value(q >> 16)));
        } else {
          pairs[i] = IntegersToPair<A>(q, kOffset);
        }
      }
    }
  }

  static __device__ __forceinline__ void Values(const Raw& raw, int p, float (&q)[8]) {
    if constexpr (kBytes) {
#pragma unroll
      for (int j = 0; j < 8; ++j) q[j] = SignedByte(raw.low[2 * p + j / 4], j % 4);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t pair = Integers(raw, p, i);
        if constexpr (kD == DType::kIQ4_NL) {
          q[2 * i] = static_cast<float>(Iq4Value(pair & 15));
          q[2 * i + 1] = static_cast<float>(Iq4Value(pair >> 16));
        } else {
          q[2 * i] = IntegerToFloat(pair & 0xffff, kOffset);
          q[2 * i + 1] = IntegerToFloat(pair >> 16, kOffset);
        }
      }
    }
  }

  // Byte i of the small scales.
  static __device__ __forceinline__ uint32_t Small(const Raw& raw, int i) {
    return raw.small[i / 4] >> (8 * (i % 4)) & 0xff;
  }

  static __device__ __forceinline__ void Scales(const Raw& raw, int p, float (&s)[2],
                                                float (&m)[2]) {
    m[0] = m[1] = 0;
    if constexpr (kUnit == 128 && kMinimum) {
      s[0] = s[1] = HalfBits(raw.halves[p]);
      m[0] = m[1] = HalfBits(raw.halves[p] >> 16);
    } else if constexpr (kUnit == 128) {
      s[0] = s[1] = HalfBits(raw.halves[p / 2] >> (16 * (p % 2)));
    } else if constexpr (kD == DType::kQ2_K) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t both = Small(raw, 2 * p + half);
        s[half] = HalfBits(raw.halves[0]) * static_cast<float>(both & 15);
        m[half] = -(HalfBits(raw.halves[0] >> 16) * static_cast<float>(both >> 4));
      }
    } else if constexpr (kD == DType::kQ3_K) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = 2 * p + half;
        const uint32_t low = Small(raw, j % 8) >> (j / 8 * 4) & 15;
        const uint32_t high = Small(raw, 8 + j % 4) >> (j / 4 * 2) & 3;
        s[half] =
            HalfBits(raw.halves[0]) * static_cast<float>(static_cast<int>(low | high << 4) - 32);
      }
    } else if constexpr (kD == DType::kQ6_K) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int scale = static_cast<int8_t>(Small(raw, 2 * p + half));
        s[half] = HalfBits(raw.halves[0]) * static_cast<float>(scale);
      }
    } else {
      // q4_k, q5_k: d, dmin, then eight scales and eight minima of six bits.
      const uint32_t d = raw.small[0] & 0xffff, dmin = raw.small[0] >> 16;
      uint32_t scale, minimum;
      if (p < 4) {
        scale = Small(raw, 4 + p) & 63;
        minimum = Small(raw, 8 + p) & 63;
      } else {
        scale = (Small(raw, 8 + p) & 15) | (Small(raw, p) >> 6) << 4;
        minimum = Small(raw, 8 + p) >> 4 | (Small(raw, 4 + p) >> 6) << 4;
      }
      s[0] = s[1] = HalfBits(d) * static_cast<float>(scale);
      m[0] = m[1] = -(HalfBits(dmin) * static_cast<float>(minimum));
    }
  }
};

// Dense rows, int8 and fp8: octets lie in order, rows end at their stride.
template <DType kD, int kValueBytes>
struct PlainFormat : OctetPlaces<kD> {
  static constexpr int kUnit = 128;
  static constexpr int kChunks = 4;
  static constexpr bool kScaled = false;
  static constexpr bool kMinimum = false;
  static constexpr bool kTwoScales = false;
  static constexpr int kValueBits = 8 * kValueBytes;
  static constexpr int kOctetWords = 2 * kValueBytes;
  struct Raw {
    uint32_t words[kChunks * kOctetWords];
  };
  // kWhole: the row is whole units.
  template <bool kWhole = false>
  static __device__ __forceinline__ void Load(Raw& raw, const uint8_t* row,
                                              const CudaRowShape& shape, int64_t unit, int t) {
    constexpr int kPieces = kChunks * kOctetWords / 4;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int p = i * kChunks / kPieces;
      const int64_t within = i * 4 % kOctetWords * 4;
      const int64_t at = (unit * kUnit + OctetPlaces<kD>::First(p, t)) * kValueBytes + within;
      if (kWhole || at < shape.stride) {
        LoadWords<4>(&raw.words[4 * i], row + at);
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) raw.words[4 * i + j] = 0;
      }
    }
  }
  static __device__ __forceinline__ void Scales(const Raw& raw, int p, float (&s)[2],
                                                float (&m)[2]) {
    s[0] = s[1] = 1;
    m[0] = m[1] = 0;
  }
};

template <>
struct Format<DType::kF32> : PlainFormat<DType::kF32, 4> {
  static __device__ __forceinline__ void Values(const Raw& raw, int p, float (&q)[8]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) q[j] = Reinterpret<float>(raw.words[8 * p + j]);
  }
};

template <DType kD, typename T>
struct HalfFormat : PlainFormat<kD, 2> {
  using Raw = typename PlainFormat<kD, 2>::Raw;
  template <typename A>
  static __device__ __forceinline__ void Pairs(const Raw& raw, int p, uint32_t (&pairs)[4]) {
    static_assert(sizeof(A) == 2, "of the type of the activations");
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = raw.words[4 * p + i];
  }
  static __device__ __forceinline__ void Values(const Raw& raw, int p, float (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      q[2 * i] = PairLow<T>(raw.words[4 * p + i]);
      q[2 * i + 1] = PairHigh<T>(raw.words[4 * p + i]);
    }
  }
};
template <>
struct Format<DType::kBF16> : HalfFormat<DType::kBF16, __nv_bfloat16> {};
template <>
struct Format<DType::kF16> : HalfFormat<DType::kF16, __half> {};

// The integers, or e4m3; the scale of the row is the caller's.
template <>
struct Format<DType::kInt8> : PlainFormat<DType::kInt8, 1> {
  template <typename A>
  static __device__ __forceinline__ void Pairs(const Raw& raw, int p, uint32_t (&pairs)[4]) {
    BytesToPairs<A>(raw.words[2 * p], &pairs[0]);
    BytesToPairs<A>(raw.words[2 * p + 1], &pairs[2]);
  }
  static __device__ __forceinline__ void Values(const Raw& raw, int p, float (&q)[8]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) q[j] = SignedByte(raw.words[2 * p + j / 4], j % 4);
  }
};

template <>
struct Format<DType::kFp8> : PlainFormat<DType::kFp8, 1> {
  template <typename A>
  static __device__ __forceinline__ void Pairs(const Raw& raw, int p, uint32_t (&pairs)[4]) {
    E4M3ToPairs<A>(raw.words[2 * p], &pairs[0]);
    E4M3ToPairs<A>(raw.words[2 * p + 1], &pairs[2]);
  }
  static __device__ __forceinline__ void Values(const Raw& raw, int p, float (&q)[8]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) q[j] = E4M3Byte(raw.words[2 * p + j / 4], j % 4);
  }
};

// The eight values of octet p as f32 (of int8 and fp8 without its scale), with the bits of
// DecodeToF32.
template <typename F>
__device__ __forceinline__ void DecodeOctet(const typename F::Raw& raw, int p, float (&w)[8]) {
  F::Values(raw, p, w);
  if constexpr (F::kScaled) {
    float s[2], m[2];
    F::Scales(raw, p, s, m);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      // Without a minimum no sum: -0 must stay what it is.
      w[j] = F::kMinimum ? fmaf(s[j / 4], w[j], m[j / 4]) : s[j / 4] * w[j];
    }
  }
}

// Of int8 and fp8, per row.
__device__ __host__ __forceinline__ const float* RowScales(const CudaMatrix& matrix,
                                                           const CudaRowShape& shape) {
  return reinterpret_cast<const float*>(matrix.data + matrix.rows * shape.stride);
}

}  // namespace pergola
