// The norms and RopeAndStore: each output row from one input row.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/decoder_ops_cpu.h"
#include "kernels/cpu/for_rows.h"
#include "kernels/cpu/targets.h"
#include "kernels/kv_layout.h"

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

constexpr int64_t kSumVectors = 16 / kLanes;

// What one norm reads and writes.
struct NormRow {
  float* x = nullptr;
  const float* residual = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;  // of a LayerNorm
  float* y = nullptr;
  int64_t size = 0;
  float epsilon = 0;
};

// Lanes of the sum over `size` elements: element i is added to lane i % 16 by `add(lanes, value)`,
// whose vector and scalar forms round alike.
template <typename Load, typename Add, typename AddOne>
float SumInLanes(int64_t size, const Load& load, const Add& add, const AddOne& add_one) {
  const F32 d;
  HWY_ALIGN float lanes[16] = {};
  const int64_t whole = size / 16 * 16;
  VF32 sums[kSumVectors];
  for (int64_t v = 0; v < kSumVectors; ++v) sums[v] = hn::Zero(d);
  for (int64_t i = 0; i < whole; i += 16) {
    for (int64_t v = 0; v < kSumVectors; ++v) sums[v] = add(sums[v], load(i + v * kLanes));
  }
  for (int64_t v = 0; v < kSumVectors; ++v) hn::Store(sums[v], d, lanes + v * kLanes);
  for (int64_t i = whole; i < size; ++i) lanes[i - whole] = add_one(lanes[i - whole], i);
  return FoldLanes(lanes);
}

// Adds the residual, if there is one, and returns the vector at `i`.
HWY_INLINE VF32 Updated(const NormRow& row, int64_t i) {
  const F32 d;
  VF32 value = hn::LoadU(d, row.x + i);
  if (row.residual != nullptr) {
    value = hn::Add(value, hn::LoadU(d, row.residual + i));
    hn::StoreU(value, d, row.x + i);
  }
  return value;
}

HWY_INLINE float UpdatedOne(const NormRow& row, int64_t i) {
  if (row.residual != nullptr) row.x[i] += row.residual[i];
  return row.x[i];
}

void RmsNormalise(const NormRow& row) {
  const F32 d;
  const float squares = SumInLanes(
      row.size, [&](int64_t i) { return Updated(row, i); },
      [](VF32 sum, VF32 value) { return Fma(value, value, sum); },
      [&](float sum, int64_t i) {
        const float value = UpdatedOne(row, i);
        return std::fma(value, value, sum);
      });
  const float mean = squares / static_cast<float>(row.size);
  const float scale = 1.0F / std::sqrt(mean + row.epsilon);
  const VF32 scales = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kLanes <= row.size; i += kLanes) {
    const VF32 normal = hn::Mul(hn::LoadU(d, row.x + i), scales);
    hn::StoreU(hn::Mul(normal, hn::LoadU(d, row.weight + i)), d, row.y + i);
  }
  for (; i < row.size; ++i) row.y[i] = row.x[i] * scale * row.weight[i];
}

void LayerNormalise(const NormRow& row) {
  const F32 d;
  const float sum = SumInLanes(
      row.size, [&](int64_t i) { return Updated(row, i); },
      [](VF32 a, VF32 b) { return hn::Add(a, b); },
      [&](float a, int64_t i) { return a + UpdatedOne(row, i); });
  const float mean = sum / static_cast<float>(row.size);
  const VF32 means = hn::Set(d, mean);
  const float squares = SumInLanes(
      row.size, [&](int64_t i) { return hn::Sub(hn::LoadU(d, row.x + i), means); },
      [](VF32 a, VF32 b) { return Fma(b, b, a); },
      [&](float a, int64_t i) { return std::fma(row.x[i] - mean, row.x[i] - mean, a); });
  const float scale = 1.0F / std::sqrt(squares / static_cast<float>(row.size) + row.epsilon);
  const VF32 scales = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kLanes <= row.size; i += kLanes) {
    const VF32 normal = hn::Mul(hn::Sub(hn::LoadU(d, row.x + i), means), scales);
    hn::StoreU(Fma(normal, hn::LoadU(d, row.weight + i), hn::LoadU(d, row.bias + i)), d, row.y + i);
  }
  for (; i < row.size; ++i) {
    row.y[i] = std::fma((row.x[i] - mean) * scale, row.weight[i], row.bias[i]);
  }
}

template <typename Args>
NormRow RowOf(const Args& args, int64_t row) {
  const int64_t hidden = args.x.dim(1);
  NormRow one;
  one.x = args.x.f32() + row * hidden;
  one.residual = args.residual.data() != nullptr ? args.residual.f32() + row * hidden : nullptr;
  one.weight = args.weight;
  one.y = args.y.f32() + row * hidden;
  one.size = hidden;
  one.epsilon = args.epsilon;
  return one;
}

void RmsNormRow(const RmsNormArgs& args, int64_t row) {
  RmsNormalise(RowOf(args, row));
}

void LayerNormRow(const LayerNormArgs& args, int64_t row) {
  NormRow one = RowOf(args, row);
  one.bias = args.bias;
  LayerNormalise(one);
}

void HeadNormRow(const HeadNormArgs& args, int64_t row) {
  NormRow one;
  one.size = args.head_dim;
  one.epsilon = args.epsilon;
  for (int64_t h = 0; h < args.heads + args.kv_heads; ++h) {
    one.x = one.y = args.qkv.f32() + row * args.qkv.dim(1) + h * args.head_dim;
    one.weight = h < args.heads ? args.query_weight : args.key_weight;
    RmsNormalise(one);
  }
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

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pergola {

void RmsNormCpu(CpuStream& stream, const RmsNormArgs& args) {
  ForRows(stream, args.x.dim(1), args.x.dim(0), args, PERGOLA_CHOOSE(stream.target(), RmsNormRow));
}

void LayerNormCpu(CpuStream& stream, const LayerNormArgs& args) {
  ForRows(stream, args.x.dim(1), args.x.dim(0), args,
          PERGOLA_CHOOSE(stream.target(), LayerNormRow));
}

void HeadNormCpu(CpuStream& stream, const HeadNormArgs& args) {
  ForRows(stream, args.qkv.dim(1), args.qkv.dim(0), args,
          PERGOLA_CHOOSE(stream.target(), HeadNormRow));
}

void RopeAndStoreCpu(CpuStream& stream, const RopeAndStoreArgs& args) {
  ForRows(stream, args.qkv.dim(1), args.qkv.dim(0), args,
          PERGOLA_CHOOSE(stream.target(), RopeAndStoreRow));
}

}  // namespace pergola
#endif  // HWY_ONCE
