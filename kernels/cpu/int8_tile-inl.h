// The innermost loop of the int8 product: R tokens times V vectors of outputs over all of K, exact
// sums in int32 registers, so that every target and every tile gives the same integers.
#if defined(PERGOLA_KERNELS_CPU_INT8_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERGOLA_KERNELS_CPU_INT8_TILE_INL_H_
#undef PERGOLA_KERNELS_CPU_INT8_TILE_INL_H_
#else
#define PERGOLA_KERNELS_CPU_INT8_TILE_INL_H_
#endif

#include "kernels/cpu/math-inl.h"
#include "kernels/packed_layout.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

using VI32 = hn::Vec<I32>;

inline constexpr int kVectorsOfPanel = static_cast<int>(kPanelColumns / kLanes);
// One quad of k of one panel.
inline constexpr int64_t kQuadBytes = 4 * kPanelColumns;
// 32 cache lines: at 10 GB/s and 100 ns of latency about 16 are in flight.
inline constexpr int64_t kInt8PrefetchBytes = 2048;

struct Int8Tile {
  const uint32_t* x = nullptr;  // [quads][R], four int8 in each
  const uint8_t* w = nullptr;   // the panel's quads, moved to the first column
  int64_t panel_stride = 0;     // bytes from one panel to the next
  int64_t quads = 0;
  int32_t* sums = nullptr;  // [panel][R][32], moved to the first column
  bool ahead = false;       // fetch weights of later quads meanwhile
};

// Where vector v of a tile begins: those beyond the panel's end lie in the next panels.
template <int V>
struct Int8Shape {
  static constexpr int kHere = V < kVectorsOfPanel ? V : kVectorsOfPanel;
  static HWY_INLINE const uint8_t* Weights(const uint8_t* w, int64_t stride, int v) {
    return w + v / kHere * stride + v % kHere * kLanes * 4;
  }
  static HWY_INLINE int64_t Sums(int rows, int r, int v) {
    return (v / kHere * rows + r) * kPanelColumns + v % kHere * kLanes;
  }
  static HWY_INLINE void Prefetch(const Int8Tile& a, const uint8_t* w) {
    if (!a.ahead) return;
#pragma GCC unroll 8
    for (int p = 0; p < V / kHere; ++p) {
      hwy::Prefetch(w + p * a.panel_stride + kInt8PrefetchBytes);
      hwy::Prefetch(w + p * a.panel_stride + kInt8PrefetchBytes + 64);
    }
  }
};

#if HWY_TARGET == HWY_AVX3
// VPDPBUSD multiplies unsigned by signed bytes: x is moved up by 128, which adds 128 times the sum
// of an output's weights (packed_layout.h); the caller takes it away. Sums wrap and come back.
template <int R, int V>
__attribute__((target(HWY_TARGET_STR ",avx512vnni"))) HWY_NOINLINE void RunVnni(const Int8Tile& a) {
  __m512i sums[R][V] = {};
  const uint8_t* w = a.w;
  const uint32_t* x = a.x;
  for (int64_t quad = 0; quad < a.quads; ++quad) {
    Int8Shape<V>::Prefetch(a, w);
    __m512i weights[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      weights[v] = _mm512_load_si512(Int8Shape<V>::Weights(w, a.panel_stride, v));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const __m512i value = _mm512_set1_epi32(static_cast<int>(x[r]));
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], value, weights[v]);
      }
    }
    x += R;
    w += kQuadBytes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      _mm512_store_si512(a.sums + Int8Shape<V>::Sums(R, r, v), sums[r][v]);
    }
  }
}
#endif

// Two signed 16-bit values in each lane.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
using I16 = hn::Repartition<int16_t, I32>;
using Pairs = hn::Vec<I16>;

// The first and third of each lane's four bytes, and the second and fourth.
HWY_INLINE Pairs EvenBytes(VI32 quads) {
  return hn::ShiftRight<8>(hn::ShiftLeft<8>(hn::BitCast(I16(), quads)));
}
HWY_INLINE Pairs OddBytes(VI32 quads) {
  return hn::ShiftRight<8>(hn::BitCast(I16(), quads));
}

// sum + the products of each lane's pairs.
HWY_INLINE VI32 AddPairs(VI32 sum, Pairs a, Pairs b) {
#if HWY_TARGET == HWY_AVX3
  return hn::Add(sum, VI32{_mm512_madd_epi16(a.raw, b.raw)});
#else
  return hn::Add(sum, VI32{_mm256_madd_epi16(a.raw, b.raw)});
#endif
}
#else
struct Pairs {
  VI32 first, second;
};

HWY_INLINE Pairs EvenBytes(VI32 quads) {
  return {hn::ShiftRight<24>(hn::ShiftLeft<24>(quads)),
          hn::ShiftRight<24>(hn::ShiftLeft<8>(quads))};
}
HWY_INLINE Pairs OddBytes(VI32 quads) {
  return {hn::ShiftRight<24>(hn::ShiftLeft<16>(quads)), hn::ShiftRight<24>(quads)};
}
HWY_INLINE VI32 AddPairs(VI32 sum, Pairs a, Pairs b) {
  return hn::Add(sum, hn::Add(hn::Mul(a.first, b.first), hn::Mul(a.second, b.second)));
}
#endif

// Where the target multiplies no bytes: through 16 bits.
template <int R, int V>
HWY_NOINLINE void RunPairsOfInt8(const Int8Tile& a) {
  const I32 d;
  VI32 sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[r][v] = hn::Zero(d);
  }
  const uint8_t* w = a.w;
  const uint32_t* x = a.x;
  for (int64_t quad = 0; quad < a.quads; ++quad) {
    Int8Shape<V>::Prefetch(a, w);
    Pairs even[V], odd[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const uint8_t* from = Int8Shape<V>::Weights(w, a.panel_stride, v);
      const VI32 quads = hn::Load(d, reinterpret_cast<const int32_t*>(from));
      even[v] = EvenBytes(quads);
      odd[v] = OddBytes(quads);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const VI32 value = hn::Set(d, static_cast<int32_t>(x[r]));
      const Pairs x_even = EvenBytes(value);
      const Pairs x_odd = OddBytes(value);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        sums[r][v] = AddPairs(AddPairs(sums[r][v], even[v], x_even), odd[v], x_odd);
      }
    }
    x += R;
    w += kQuadBytes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      hn::Store(sums[r][v], d, a.sums + Int8Shape<V>::Sums(R, r, v));
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#endif
