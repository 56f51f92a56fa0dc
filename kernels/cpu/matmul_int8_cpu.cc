#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_features.h"
#include "kernels/cpu/matmul_cpu.h"
#include "kernels/cpu/targets.h"
#include "kernels/int8.h"
#include "kernels/packed_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_int8_cpu.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"
#include "kernels/cpu/int8_tile-inl.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

// Tokens that share one pass over a panel's weights, which stay in the second-level cache
// meanwhile.
constexpr int64_t kInt8GroupRows = 48;
constexpr int64_t kMaskBits = 64;

// Accumulators (tokens times two vectors) fill the registers but for weights and a token's value.
#if HWY_TARGET == HWY_AVX3
constexpr int kMostInt8Rows = 12;
#else
constexpr int kMostInt8Rows = 4;
#endif
// Panels side by side for one token and for two: eight independent chains.
constexpr int kInt8PanelsOfOne = kVectorsOfPanel <= 8 ? 8 / kVectorsOfPanel : 1;
constexpr int kInt8PanelsOfTwo = kVectorsOfPanel <= 4 ? 4 / kVectorsOfPanel : 1;
constexpr int kInt8Narrow = kVectorsOfPanel < 2 ? kVectorsOfPanel : 2;

// Tokens in eight bits, as the tiles read them.
struct Int8Tokens {
  int64_t columns = 0, quads = 0, mask_words = 0;
  int64_t first_row = 0;  // of x
  int64_t rows = 0;
  uint32_t* words = nullptr;     // of each tile [quads][tokens of the tile]
  uint64_t* outliers = nullptr;  // [rows][mask_words], bit k: x[k] is one
  float scale[kInt8GroupRows] = {};
  bool any_outlier[kInt8GroupRows] = {};
};

int Int8TileRows(int64_t left) {
  for (int r : {1, 2, 4, 8}) {
    if (left <= r && r <= kMostInt8Rows) return r;
  }
  return kMostInt8Rows;
}

// Int8LimitOf.
float LimitOfToken(const float* x, int64_t columns) {
  constexpr int64_t kParts = kInt8SumParts / kLanes;
  const F32 d;
  const VF32 limit = hn::Set(d, kInt8Outlier);
  VF32 sums[kParts];
  for (VF32& sum : sums) sum = hn::Zero(d);
  int64_t k = 0;
  for (; k + kInt8SumParts <= columns; k += kInt8SumParts) {
#pragma GCC unroll 16
    for (int64_t p = 0; p < kParts; ++p) {
      const VF32 value = hn::LoadU(d, x + k + p * kLanes);
      const VF32 kept = hn::IfThenElseZero(hn::Le(hn::Abs(value), limit), value);
      sums[p] = hn::Add(sums[p], hn::Mul(kept, kept));
    }
  }
  HWY_ALIGN float parts[kInt8SumParts];
  for (int64_t p = 0; p < kParts; ++p) hn::Store(sums[p], d, parts + p * kLanes);
  for (int64_t i = 0; k < columns; ++k, ++i) {
    const float value = IsInt8Outlier(x[k], kInt8Outlier) ? 0.0F : x[k];
    parts[i] += value * value;
  }
  float sum = 0;
  for (const float part : parts) sum += part;
  return Int8Limit(sum, columns);
}

// A token and what is an outlier of it.
struct Int8Row {
  const float* x = nullptr;
  int64_t columns = 0;
  float limit = 0;
};

// Marks the outliers in `mask` and finds the largest of the rest. False: there are none.
bool FindOutliers(const Int8Row& row, uint64_t* mask, float* most) {
  const F32 d;
  const float* x = row.x;
  const int64_t columns = row.columns;
  const VF32 limit = hn::Set(d, row.limit);
  VF32 largest = hn::Zero(d);
  bool any = false;
  const auto mark = [&](int64_t k) {
    mask[k / kMaskBits] |= uint64_t{1} << k % kMaskBits;
    any = true;
  };
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) {
    const VF32 size = hn::Abs(hn::LoadU(d, x + k));
    const auto inside = hn::Le(size, limit);
    largest = hn::Max(largest, hn::IfThenElseZero(inside, size));
    if (hn::AllTrue(d, inside)) continue;
    for (int64_t i = k; i < k + kLanes; ++i) {
      if (IsInt8Outlier(x[i], row.limit)) mark(i);
    }
  }
  *most = hn::GetLane(hn::MaxOfLanes(d, largest));
  for (; k < columns; ++k) {
    if (IsInt8Outlier(x[k], row.limit)) {
      mark(k);
    } else {
      *most = std::max(*most, x[k] < 0 ? -x[k] : x[k]);
    }
  }
  return any;
}

// q of every column, 0 of outliers. The magic number of ToInt8.
void QuantizeRow(const Int8Row& row, float inverse, int8_t* q) {
  const F32 d;
  const float* x = row.x;
  const int64_t columns = row.columns;
  const hn::Rebind<int8_t, F32> d8;
  const VF32 limit = hn::Set(d, row.limit);
  const VF32 steps = hn::Set(d, inverse);
  const VF32 magic = hn::Set(d, 12582912.0F);
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) {
    const VF32 value = hn::LoadU(d, x + k);
    const VF32 kept = hn::IfThenElseZero(hn::Le(hn::Abs(value), limit), value);
    const VF32 rounded = hn::Sub(hn::Add(hn::Mul(kept, steps), magic), magic);
    hn::StoreU(hn::DemoteTo(d8, hn::ConvertTo(I32(), rounded)), d8, q + k);
  }
  for (; k < columns; ++k)
    q[k] = IsInt8Outlier(x[k], row.limit) ? int8_t{0} : ToInt8(x[k], inverse);
}

// Fills `tokens` from rows of x. `row` is scratch for one row's bytes. With `moved` each byte is
// 128 more, as RunVnni takes them.
void QuantizeTokens(const float* x, bool moved, int8_t* row, Int8Tokens* tokens) {
  std::fill_n(tokens->outliers, tokens->rows * tokens->mask_words, uint64_t{0});
  uint32_t* words = tokens->words;
  const uint32_t move = moved ? 0x80808080U : 0U;
  std::fill_n(row, 4 * tokens->quads, int8_t{0});
  for (int64_t first = 0; first < tokens->rows;) {
    const int padded = Int8TileRows(tokens->rows - first);
    for (int r = 0; r < padded; ++r) {
      const int64_t token = first + r;
      if (token >= tokens->rows) {
        for (int64_t quad = 0; quad < tokens->quads; ++quad) words[quad * padded + r] = move;
        continue;
      }
      Int8Row from;
      from.x = x + (tokens->first_row + token) * tokens->columns;
      from.columns = tokens->columns;
      from.limit = LimitOfToken(from.x, from.columns);
      float most = 0;
      tokens->any_outlier[token] =
          FindOutliers(from, tokens->outliers + token * tokens->mask_words, &most);
      const Int8Steps steps = StepsOf(most);
      tokens->scale[token] = steps.scale;
      QuantizeRow(from, steps.inverse, row);
      for (int64_t quad = 0; quad < tokens->quads; ++quad) {
        uint32_t word;
        std::memcpy(&word, row + 4 * quad, 4);
        words[quad * padded + r] = word ^ move;
      }
    }
    words += tokens->quads * padded;
    first += padded;
  }
}

template <bool kVnni, int R, int V>
HWY_INLINE void RunInt8(const Int8Tile& a) {
#if HWY_TARGET == HWY_AVX3
  if constexpr (kVnni) return RunVnni<R, V>(a);
#endif
  RunPairsOfInt8<R, V>(a);
}

template <bool kVnni>
HWY_INLINE void RunInt8Tile(int rows, int panels, Int8Tile a) {
  if (panels > 1) {
    if constexpr (kInt8PanelsOfTwo > 1) {
      if (rows == 2) return RunInt8<kVnni, 2, kInt8PanelsOfTwo * kVectorsOfPanel>(a);
    }
    if constexpr (kInt8PanelsOfOne > 1) {
      return RunInt8<kVnni, 1, kInt8PanelsOfOne * kVectorsOfPanel>(a);
    }
  }
  for (int64_t c = 0; c < kPanelColumns; c += kInt8Narrow * kLanes) {
    Int8Tile part = a;
    part.w += 4 * c;
    part.sums += c;
    switch (rows) {
      case 1:
        RunInt8<kVnni, 1, kInt8Narrow>(part);
        break;
      case 2:
        RunInt8<kVnni, 2, kInt8Narrow>(part);
        break;
#if HWY_TARGET == HWY_AVX3
      case 4:
        RunInt8<kVnni, 4, kInt8Narrow>(part);
        break;
      case 8:
        RunInt8<kVnni, 8, kInt8Narrow>(part);
        break;
#endif
      default:
        RunInt8<kVnni, kMostInt8Rows, kInt8Narrow>(part);
        break;
    }
  }
}

// The sum over the outliers of one token for kLanes outputs from column c of the panel on.
VF32 OutlierSum(const Int8Tokens& tokens, int64_t token, const float* x, const uint8_t* quads) {
  const F32 d;
  const I32 di;
  VF32 sum = hn::Zero(d);
  const uint64_t* mask = tokens.outliers + token * tokens.mask_words;
  for (int64_t word = 0; word < tokens.mask_words; ++word) {
    for (uint64_t bits = mask[word]; bits != 0; bits &= bits - 1) {
      const int64_t k = word * kMaskBits + __builtin_ctzll(bits);
      const auto* from = reinterpret_cast<const int32_t*>(quads + k / 4 * kQuadBytes);
      const VI32 byte = hn::ShiftLeftSame(hn::Load(di, from), static_cast<int>(24 - k % 4 * 8));
      sum = Fma(hn::Set(d, x[k]), hn::ConvertTo(d, hn::ShiftRight<24>(byte)), sum);
    }
  }
  return sum;
}

// The outputs of one token and one panel from their integer sums.
template <bool kVnni>
void WriteInt8Panel(const MatmulArgs& args, const Int8Tokens& tokens, int64_t token, int64_t panel,
                    const int32_t* sums) {
  const F32 d;
  const I32 di;
  const int64_t outputs = args.w->rows();
  const uint8_t* w = args.w->data() + panel * PanelBytes(DType::kInt8, tokens.columns, 0);
  const auto* scales = reinterpret_cast<const float*>(w);
  const auto* weight_sums = reinterpret_cast<const int32_t*>(w + 4 * kPanelColumns);
  const float* x = args.x.f32() + (tokens.first_row + token) * tokens.columns;
  const VF32 x_scale = hn::Set(d, tokens.scale[token]);
  HWY_ALIGN float values[kPanelColumns];
  for (int64_t c = 0; c < kPanelColumns; c += kLanes) {
    VI32 sum = hn::Load(di, sums + c);
    if (kVnni) sum = hn::Sub(sum, hn::ShiftLeft<7>(hn::Load(di, weight_sums + c)));
    const VF32 outliers = tokens.any_outlier[token]
                              ? OutlierSum(tokens, token, x, w + kInt8HeaderBytes + 4 * c)
                              : hn::Zero(d);
    const VF32 product = Fma(x_scale, hn::ConvertTo(d, sum), outliers);
    hn::Store(hn::Mul(hn::Load(d, scales + c), product), d, values + c);
  }
  const int64_t column = panel * kPanelColumns;
  float* y = args.y.f32() + (tokens.first_row + token) * outputs + column;
  const int64_t count = std::min(kPanelColumns, outputs - column);
  for (int64_t c = 0; c < count; ++c) {
    const float value = args.bias != nullptr ? values[c] + args.bias[column + c] : values[c];
    y[c] = args.accumulate ? y[c] + value : value;
  }
}

template <bool kVnni>
void RunTokens(const MatmulArgs& args, const Int8Tokens& tokens, const MatmulShare& part) {
  HWY_ALIGN int32_t
      sums[kMostInt8Rows * kPanelColumns < 8 * kPanelColumns ? 8 * kPanelColumns
                                                             : kMostInt8Rows * kPanelColumns];
  Int8Tile a;
  a.panel_stride = PanelBytes(DType::kInt8, tokens.columns, 0);
  a.quads = tokens.quads;
  a.sums = sums;
  const int together = tokens.rows == 1   ? kInt8PanelsOfOne
                       : tokens.rows == 2 ? kInt8PanelsOfTwo
                                          : 1;
  for (int64_t panel = part.panel_begin; panel < part.panel_end;) {
    const int panels = panel + together <= part.panel_end ? together : 1;
    a.w = args.w->data() + panel * a.panel_stride + kInt8HeaderBytes;
    a.x = tokens.words;
    for (int64_t first = 0; first < tokens.rows;) {
      const int rows = Int8TileRows(tokens.rows - first);
      a.ahead = first == 0;
      RunInt8Tile<kVnni>(rows, panels, a);
      for (int p = 0; p < panels; ++p) {
        for (int64_t r = 0; r < std::min<int64_t>(rows, tokens.rows - first); ++r) {
          WriteInt8Panel<kVnni>(args, tokens, first + r, panel + p,
                                sums + (int64_t{p} * rows + r) * kPanelColumns);
        }
      }
      a.x += tokens.quads * rows;
      first += rows;
    }
    panel += panels;
  }
}

void MatmulInt8Part(const MatmulArgs& args, const MatmulShare& part, uint8_t* scratch, bool vnni) {
  Int8Tokens tokens;
  tokens.columns = args.w->columns();
  tokens.quads = (tokens.columns + 3) / 4;
  tokens.mask_words = (tokens.columns + kMaskBits - 1) / kMaskBits;
  // One row's bytes, then of each token its words and its mask: of the longest row (2^17 columns)
  // 13 tokens fit.
  const int64_t row_bytes = (tokens.quads * 4 + 63) / 64 * 64;
  const int64_t token_bytes = row_bytes + tokens.mask_words * 8;
  const int64_t fit = std::min(
      (ThreadPool::kScratchBytes - row_bytes) / std::max<int64_t>(token_bytes, 1), kInt8GroupRows);
  const int64_t most = fit / kMostInt8Rows * kMostInt8Rows;
  tokens.outliers = reinterpret_cast<uint64_t*>(scratch + row_bytes);
  tokens.words = reinterpret_cast<uint32_t*>(scratch + row_bytes + most * tokens.mask_words * 8);
  for (int64_t row = part.row_begin; row < part.row_end; row += most) {
    tokens.first_row = row;
    tokens.rows = std::min(most, part.row_end - row);
    QuantizeTokens(args.x.f32(), vnni, reinterpret_cast<int8_t*>(scratch), &tokens);
    if (vnni) {
      RunTokens<true>(args, tokens, part);
    } else {
      RunTokens<false>(args, tokens, part);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pergola {

void MatmulInt8Cpu(CpuStream& stream, const MatmulArgs& args, bool allow_vnni) {
  const auto run = PERGOLA_CHOOSE(stream.target(), MatmulInt8Part);
  const bool vnni = allow_vnni && stream.target() == CpuTarget::kAvx512 && CpuHasAvx512Vnni();
  ThreadPool& pool = stream.pool();
  RunShares(pool, args, [&](const MatmulShare& share, int thread) {
    run(args, share, pool.Scratch(thread), vnni);
  });
}

}  // namespace pergola
#endif  // HWY_ONCE
