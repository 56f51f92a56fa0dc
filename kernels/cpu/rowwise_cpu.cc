// RmsNorm, RopeAndStore and SwiGlu: each output row from one input row.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/decoder_ops_cpu.h"
#include "kernels/cpu/targets.h"
#include "kernels/kv_layout.h"
#include "kernels/thread_pool.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rowwise_cpu.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

// Folds the 16 lanes of a fixed-order sum 8, 4, 2, 1.
float FoldLanes(float* lanes) {
  for (int width : {8, 4, 2, 1}) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

void RmsNormRow(const RmsNormArgs& args, int64_t row) {
  const F32 d;
  const int64_t hidden = args.x.dim(1);
  float* x = args.x.f32() + row * hidden;
  float* y = args.y.f32() + row * hidden;
  const float* residual = args.residual != nullptr ? args.residual + row * hidden : nullptr;
  HWY_ALIGN float lanes[16] = {};
  constexpr int64_t kVectors = 16 / kLanes;
  const int64_t whole = hidden / 16 * 16;
  VF32 sums[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) sums[v] = hn::Zero(d);
  for (int64_t i = 0; i < whole; i += 16) {
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t at = i + v * kLanes;
      VF32 value = hn::LoadU(d, x + at);
      if (residual != nullptr) {
        value = hn::Add(value, hn::LoadU(d, residual + at));
        hn::StoreU(value, d, x + at);
      }
      sums[v] = Fma(value, value, sums[v]);
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) hn::Store(sums[v], d, lanes + v * kLanes);
  for (int64_t i = whole; i < hidden; ++i) {
    if (residual != nullptr) x[i] += residual[i];
    lanes[i - whole] = std::fma(x[i], x[i], lanes[i - whole]);
  }
  const float mean = FoldLanes(lanes) / static_cast<float>(hidden);
  const float scale = 1.0F / std::sqrt(mean + args.epsilon);
  const VF32 scales = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kLanes <= hidden; i += kLanes) {
    const VF32 normal = hn::Mul(hn::LoadU(d, x + i), scales);
    hn::StoreU(hn::Mul(normal, hn::LoadU(d, args.weight + i)), d, y + i);
  }
  for (; i < hidden; ++i) y[i] = x[i] * scale * args.weight[i];
}

// Rounds f32 to the cache's dtype, nearest even.
void StoreNarrow(DType dtype, const float* from, int64_t values, uint8_t* to) {
  const F32 d;
  auto* half = reinterpret_cast<uint16_t*>(to);
  int64_t i = 0;
  if (dtype == DType::kF32) {
    std::copy_n(from, values, reinterpret_cast<float*>(to));
    return;
  }
  if (dtype == DType::kBF16) {
    for (; i < values; ++i) half[i] = F32ToBF16(from[i]);
    return;
  }
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const hn::Rebind<hwy::float16_t, F32> dh;
  for (; i + kLanes <= values; i += kLanes) {
    hn::StoreU(hn::DemoteTo(dh, hn::LoadU(d, from + i)), dh,
               reinterpret_cast<hwy::float16_t*>(half + i));
  }
#else
  (void)d;
#endif
  for (; i < values; ++i) half[i] = F32ToF16(from[i]);
}

// (a, b) becomes (a cos - b sin, b cos + a sin); the second product is rounded, the first is fused
// with the sum.
void RotateHead(const float* cosine, const float* sine, int64_t half, float* head) {
  const F32 d;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const VF32 c = hn::LoadU(d, cosine + i);
    const VF32 s = hn::LoadU(d, sine + i);
    const VF32 a = hn::LoadU(d, head + i);
    const VF32 b = hn::LoadU(d, head + half + i);
    hn::StoreU(Fma(a, c, hn::Neg(hn::Mul(b, s))), d, head + i);
    hn::StoreU(Fma(b, c, hn::Mul(a, s)), d, head + half + i);
  }
  for (; i < half; ++i) {
    const float a = head[i];
    const float b = head[half + i];
    head[i] = std::fma(a, cosine[i], -(b * sine[i]));
    head[half + i] = std::fma(b, cosine[i], a * sine[i]);
  }
}

void RopeAndStoreRow(const RopeAndStoreArgs& args, int64_t row) {
  const int64_t dim = args.head_dim;
  const int64_t half = args.rope.dims / 2;
  const KvLayout layout{args.kv_heads, args.block_tokens, dim, args.kv_dtype};
  float* values = args.qkv.f32() + row * (args.heads + 2 * args.kv_heads) * dim;
  const int64_t position = args.positions[row];
  for (int64_t h = 0; h < args.heads + args.kv_heads; ++h) {
    RotateHead(args.rope.cosine + position * half, args.rope.sine + position * half, half,
               values + h * dim);
  }
  const float* k = values + args.heads * dim;
  const float* v = k + args.kv_heads * dim;
  for (int64_t h = 0; h < args.kv_heads; ++h) {
    const int64_t offset = layout.OffsetOfSlot(args.slot_of_row[row], h);
    StoreNarrow(args.kv_dtype, k + h * dim, dim, static_cast<uint8_t*>(args.k_cache) + offset);
    StoreNarrow(args.kv_dtype, v + h * dim, dim, static_cast<uint8_t*>(args.v_cache) + offset);
  }
}

// kLanes values of silu(gate) * up.
HWY_INLINE VF32 SwiGluLanes(VF32 gate, VF32 up) {
  const F32 d;
  const VF32 denominator = hn::Add(hn::Set(d, 1.0F), Exp(hn::Neg(gate)));
  return hn::Mul(hn::Div(gate, denominator), up);
}

void SwiGluRow(const SwiGluArgs& args, int64_t row) {
  const F32 d;
  const int64_t ffn = args.y.dim(1);
  const float* gate = args.gate_up.f32() + row * 2 * ffn;
  const float* up = gate + ffn;
  float* y = args.y.f32() + row * ffn;
  int64_t i = 0;
  for (; i + kLanes <= ffn; i += kLanes) {
    hn::StoreU(SwiGluLanes(hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, y + i);
  }
  if (i == ffn) return;
  HWY_ALIGN float tail[3][kLanes] = {};
  for (int64_t j = i; j < ffn; ++j) {
    tail[0][j - i] = gate[j];
    tail[1][j - i] = up[j];
  }
  hn::Store(SwiGluLanes(hn::Load(d, tail[0]), hn::Load(d, tail[1])), d, tail[2]);
  for (int64_t j = i; j < ffn; ++j) y[j] = tail[2][j - i];
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pergola {
namespace {

// Values a thread should have to itself before a fork pays.
constexpr int64_t kGrainValues = 8192;

template <typename Args>
void ForRows(Stream& stream, int64_t row_values, int64_t rows, const Args& args,
             void (*run)(const Args&, int64_t)) {
  const int64_t grain = std::max<int64_t>(1, kGrainValues / std::max<int64_t>(row_values, 1));
  stream.pool().ParallelFor(rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) run(args, r);
  });
}

}  // namespace

void RmsNormCpu(Stream& stream, const RmsNormArgs& args) {
  ForRows(stream, args.x.dim(1), args.x.dim(0), args,
          PERGOLA_CHOOSE(stream.cpu_target(), RmsNormRow));
}

void RopeAndStoreCpu(Stream& stream, const RopeAndStoreArgs& args) {
  ForRows(stream, args.qkv.dim(1), args.qkv.dim(0), args,
          PERGOLA_CHOOSE(stream.cpu_target(), RopeAndStoreRow));
}

void SwiGluCpu(Stream& stream, const SwiGluArgs& args) {
  ForRows(stream, 4 * args.y.dim(1), args.y.dim(0), args,
          PERGOLA_CHOOSE(stream.cpu_target(), SwiGluRow));
}

}  // namespace pergola
#endif  // HWY_ONCE
