// The innermost loop of Matmul: R rows of x times V vectors of outputs over a range of K,
// accumulators in registers. Each accumulator lane is one output element; its chain of fused
// multiply-adds runs over k ascending.
#if defined(PERGOLA_KERNELS_CPU_MATMUL_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERGOLA_KERNELS_CPU_MATMUL_TILE_INL_H_
#undef PERGOLA_KERNELS_CPU_MATMUL_TILE_INL_H_
#else
#define PERGOLA_KERNELS_CPU_MATMUL_TILE_INL_H_
#endif

#include "kernels/cpu/math-inl.h"
#include "kernels/packed_layout.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

inline constexpr int kPanelVectors = static_cast<int>(kPanelColumns / kLanes);

struct TileArgs {
  const float* x = nullptr;    // [k][R], at the first k of the range
  const uint8_t* w = nullptr;  // panel at the first k of the range, moved to the first column
  int64_t panel_stride = 0;    // bytes from one panel to the next
  int64_t k = 0;               // length of the range
  float* sums = nullptr;       // [panel][R][32], moved to the first column
  bool first = false;          // the range starts at K's beginning: sums start at 0
  // Weights to fetch into cache meanwhile, and by how much that address moves per step (one k of
  // f32 or f16, two of bf16); nullptr: nothing. The address may lie beyond the weights: a prefetch
  // cannot fault.
  const uint8_t* ahead = nullptr;
  int64_t ahead_step = 0;
};

// V vectors beginning at one panel; those beyond the panel's end lie in the next panels.
template <int V>
struct TileShape {
  static constexpr int kVectorsHere = V < kPanelVectors ? V : kPanelVectors;
  static constexpr int kPanels = V / kVectorsHere;
};

template <int R, int V>
HWY_INLINE void MultiplyAdd(const float* x, const VF32 (&w)[V], VF32 (&sums)[R][V]) {
  const F32 d;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const VF32 value = hn::Set(d, x[r]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sums[r][v] = Fma(value, w[v], sums[r][v]);
  }
}

// Bytes of one panel that one step of the loops below reads: one or two cache lines.
constexpr int64_t StepBytes(DType dtype) {
  return dtype == DType::kF16 ? 64 : 128;
}

template <DType kType, int V>
HWY_INLINE void PrefetchAhead(const uint8_t* ahead, int64_t panel_stride) {
#pragma GCC unroll 4
  for (int p = 0; p < TileShape<V>::kPanels; ++p) {
    hwy::Prefetch(ahead + p * panel_stride);
    if (StepBytes(kType) > 64) hwy::Prefetch(ahead + p * panel_stride + 64);
  }
}

// f32 and f16: one k at a time.
template <DType kType, int R, int V>
HWY_INLINE void RunSingles(const TileArgs& a, VF32 (&sums)[R][V]) {
  const F32 d;
  constexpr int kHere = TileShape<V>::kVectorsHere;
  constexpr int64_t kBytes = kType == DType::kF32 ? 4 : 2;
  const uint8_t* w = a.w;
  const uint8_t* ahead = a.ahead;
  const float* x = a.x;
  for (int64_t k = 0; k < a.k; ++k) {
    if (a.ahead != nullptr) PrefetchAhead<kType, V>(ahead, a.panel_stride);
    ahead += a.ahead_step;
    VF32 weights[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const uint8_t* p = w + v / kHere * a.panel_stride + v % kHere * kLanes * kBytes;
      weights[v] = kType == DType::kF32 ? hn::LoadU(d, reinterpret_cast<const float*>(p))
                                        : LoadF16(reinterpret_cast<const uint16_t*>(p));
    }
    MultiplyAdd<R, V>(x, weights, sums);
    x += R;
    w += kPanelColumns * kBytes;
  }
}

// bf16: two k in one 32-bit lane.
template <int R, int V>
HWY_INLINE void RunPairs(const TileArgs& a, VF32 (&sums)[R][V]) {
  const F32 d;
  const U32 du;
  constexpr int kHere = TileShape<V>::kVectorsHere;
  const auto high = hn::Set(du, 0xffff0000U);
  const uint8_t* w = a.w;
  const uint8_t* ahead = a.ahead;
  const float* x = a.x;
  for (int64_t k = 0; k < a.k; k += 2) {
    if (a.ahead != nullptr) PrefetchAhead<DType::kBF16, V>(ahead, a.panel_stride);
    ahead += a.ahead_step;
    hn::Vec<U32> pairs[V];
    VF32 weights[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      pairs[v] = hn::LoadU(du, reinterpret_cast<const uint32_t*>(w + v / kHere * a.panel_stride +
                                                                 v % kHere * kLanes * 4));
      weights[v] = hn::BitCast(d, hn::ShiftLeft<16>(pairs[v]));
    }
    MultiplyAdd<R, V>(x, weights, sums);
    if (k + 1 == a.k) break;
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) weights[v] = hn::BitCast(d, hn::And(pairs[v], high));
    MultiplyAdd<R, V>(x + R, weights, sums);
    x += int64_t{2} * R;
    w += kPanelColumns * 4;
  }
}

template <DType kType, int R, int V>
HWY_NOINLINE void RunTile(const TileArgs& a) {
  const F32 d;
  constexpr int kHere = TileShape<V>::kVectorsHere;
  VF32 sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const float* from = a.sums + (v / kHere * R + r) * kPanelColumns + v % kHere * kLanes;
      sums[r][v] = a.first ? hn::Zero(d) : hn::Load(d, from);
    }
  }
  if constexpr (kType == DType::kBF16) {
    RunPairs<R, V>(a, sums);
  } else {
    RunSingles<kType, R, V>(a, sums);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      float* to = a.sums + (v / kHere * R + r) * kPanelColumns + v % kHere * kLanes;
      hn::Store(sums[r][v], d, to);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#endif
