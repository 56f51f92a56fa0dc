// Paged attention: an item is a few rows of the step times the query heads that share one KV head.
// Per key tile its K and V are widened once and serve all the item's query rows. Nothing a query
// row computes depends on the others:
//   score[t]  = chain of fused multiply-adds over head_dim ascending of (q * scale) and k[t]
//               (with ALiBi then fused with slope and distance)
//   largest   = max(largest, tile's scores);  shrink = exp(old largest - largest);  p[t] =
//   exp(score[t] - largest) total     = 16 lanes, lane i takes t = i, i + 16, ... of a tile;  lane
//   = fma(lane, shrink, tile's lane) sum[d]    = sum[d] * shrink, then a chain over t ascending of
//   p[t] and v[t][d];  out = sum / fold(total)
// Keys a row must not see have p = 0, which leaves its chains as they are.
#include <algorithm>
#include <atomic>
#include <limits>

#include "kernels/cpu/decoder_ops_cpu.h"
#include "kernels/cpu/targets.h"
#include "kernels/kv_layout.h"
#include "kernels/thread_pool.h"

#ifndef PERGOLA_KERNELS_CPU_ATTENTION_CPU_ONCE_
#define PERGOLA_KERNELS_CPU_ATTENTION_CPU_ONCE_
namespace pergola {

// Most query rows (rows times heads) of an item.
inline constexpr int64_t kMaxQueries = 64;

// Rows [row_begin, row_end) and heads [head_begin, head_end), which all read `kv_head`.
struct AttentionItem {
  int64_t row_begin = 0, row_end = 0;
  int64_t head_begin = 0, head_end = 0;
};

}  // namespace pergola
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_cpu.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
#if HWY_TARGET == HWY_AVX3
constexpr int kQueryTile = 8;
#else
constexpr int kQueryTile = 4;
#endif

// The scratch of one item; sizes in floats.
struct Buffers {
  float* query = nullptr;    // per query tile of R rows: [head_dim][R], scaled
  float* weights = nullptr;  // [queries][kMaxBlockTokens]: scores, then p
  float* sums = nullptr;     // [queries][padded_dim]
  float* keys = nullptr;     // [head_dim][block_tokens]
  float* values = nullptr;   // [block_tokens][padded_dim]
  float* rows = nullptr;     // [block_tokens][padded_dim]: keys before they are transposed
  int64_t padded_dim = 0;
};

struct State {
  HWY_ALIGN float largest[kMaxQueries];
  HWY_ALIGN float shrink[kMaxQueries];
  HWY_ALIGN float total[kMaxQueries][16];
  int64_t position[kMaxQueries];
  int64_t first[kMaxQueries];  // first key the window lets through
  float slope[kMaxQueries];    // ALiBi's, read where there are slopes
};

struct GemmArgs {
  const float* a = nullptr;  // element (r, k) at r * a_row + k * a_step
  int64_t a_row = 0, a_step = 0;
  const float* b = nullptr;  // [k][b_stride]
  int64_t b_stride = 0;
  int64_t k = 0;
  float* c = nullptr;  // [R][c_stride]
  int64_t c_stride = 0;
  int64_t columns = 0;            // multiple of kLanes
  const float* shrink = nullptr;  // c = c * shrink[r] + a b; nullptr: c = a b
};

template <int R, int V>
HWY_INLINE void GemmColumns(const GemmArgs& g, int64_t column) {
  const F32 d;
  VF32 sums[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const float* from = g.c + r * g.c_stride + column + v * kLanes;
      sums[r][v] =
          g.shrink != nullptr ? hn::Mul(hn::LoadU(d, from), hn::Set(d, g.shrink[r])) : hn::Zero(d);
    }
  }
  const float* b = g.b + column;
  const float* a = g.a;
  for (int64_t k = 0; k < g.k; ++k, b += g.b_stride, a += g.a_step) {
    VF32 right[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) right[v] = hn::LoadU(d, b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const VF32 left = hn::Set(d, a[r * g.a_row]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sums[r][v] = Fma(left, right[v], sums[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      hn::StoreU(sums[r][v], d, g.c + r * g.c_stride + column + v * kLanes);
    }
  }
}

template <int R>
HWY_NOINLINE void Gemm(const GemmArgs& g) {
  constexpr int kWide = R == 1 ? 4 : 2;
  int64_t column = 0;
  for (; column + kWide * kLanes <= g.columns; column += kWide * kLanes) {
    GemmColumns<R, kWide>(g, column);
  }
  for (; column < g.columns; column += kLanes) GemmColumns<R, 1>(g, column);
}

void RunGemm(int64_t rows, const GemmArgs& g) {
  if (rows == 1) return Gemm<1>(g);
  if (rows == 2) return Gemm<2>(g);
  if (rows == 4) return Gemm<4>(g);
  return Gemm<kQueryTile>(g);
}

// Rows of the next query tile when `left` remain: the largest size there is code for.
int64_t TileRows(int64_t left) {
  if (left >= kQueryTile) return kQueryTile;
  return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

// rows [tokens][stride] to keys [dim][block_tokens], the tokens beyond `tokens` as zeros.
void Transpose(const float* rows, int64_t stride, int64_t tokens, int64_t dim, float* keys,
               int64_t block_tokens) {
  int64_t t = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  const F32 d;
  const hn::Repartition<double, F32> dd;
  const int64_t whole = dim / kLanes * kLanes;
  for (; t + 4 <= tokens; t += 4) {
    const float* from = rows + t * stride;
    for (int64_t i = 0; i < whole; i += kLanes) {
      const VF32 a = hn::LoadU(d, from + i);
      const VF32 b = hn::LoadU(d, from + stride + i);
      const VF32 c = hn::LoadU(d, from + 2 * stride + i);
      const VF32 e = hn::LoadU(d, from + 3 * stride + i);
      // Within each 128-bit block: 4 x 4 floats transposed.
      const auto ab_low = hn::BitCast(dd, hn::InterleaveLower(d, a, b));
      const auto ab_high = hn::BitCast(dd, hn::InterleaveUpper(d, a, b));
      const auto ce_low = hn::BitCast(dd, hn::InterleaveLower(d, c, e));
      const auto ce_high = hn::BitCast(dd, hn::InterleaveUpper(d, c, e));
      HWY_ALIGN float out[4][kLanes];
      hn::Store(hn::BitCast(d, hn::InterleaveLower(dd, ab_low, ce_low)), d, out[0]);
      hn::Store(hn::BitCast(d, hn::InterleaveUpper(dd, ab_low, ce_low)), d, out[1]);
      hn::Store(hn::BitCast(d, hn::InterleaveLower(dd, ab_high, ce_high)), d, out[2]);
      hn::Store(hn::BitCast(d, hn::InterleaveUpper(dd, ab_high, ce_high)), d, out[3]);
      for (int64_t j = 0; j < kLanes; ++j) {
        // Lane block j / 4 of out[j % 4] holds element i + j of four tokens.
        std::copy_n(out[j % 4] + j / 4 * 4, 4, keys + (i + j) * block_tokens + t);
      }
    }
    for (int64_t i = whole; i < dim; ++i) {
      for (int64_t j = 0; j < 4; ++j) keys[i * block_tokens + t + j] = from[j * stride + i];
    }
  }
#endif
  for (; t < tokens; ++t) {
    for (int64_t i = 0; i < dim; ++i) keys[i * block_tokens + t] = rows[t * stride + i];
  }
  for (; t < block_tokens; ++t) {
    for (int64_t i = 0; i < dim; ++i) keys[i * block_tokens + t] = 0.0F;
  }
}

// True if any of the values is infinite or NaN.
bool HasNonFinite(const float* values, int64_t count) {
  const F32 d;
  VF32 probe = hn::Zero(d);
  for (int64_t i = 0; i < count; i += kLanes) {
    probe = Fma(hn::LoadU(d, values + i), hn::Zero(d), probe);  // 0 * inf and 0 * NaN are NaN
  }
  return !hn::AllTrue(d, hn::Eq(probe, probe));
}

// One key tile of the cache, widened. Returns whether its values hold an infinity or NaN.
bool LoadTile(const AttentionArgs& args, int64_t offset, int64_t tokens, const Buffers& b) {
  const int64_t dim = args.head_dim;
  const int64_t row_bytes = DTypeBytes(args.kv_dtype, dim);
  const auto* k = static_cast<const uint8_t*>(args.k_cache) + offset;
  const auto* v = static_cast<const uint8_t*>(args.v_cache) + offset;
  for (int64_t t = 0; t < tokens; ++t) {
    WidenValues(args.kv_dtype, k + t * row_bytes, dim, b.rows + t * b.padded_dim);
    WidenValues(args.kv_dtype, v + t * row_bytes, dim, b.values + t * b.padded_dim);
  }
  Transpose(b.rows, b.padded_dim, tokens, dim, b.keys, args.block_tokens);
  return HasNonFinite(b.values, tokens * b.padded_dim);
}

// Turns the tile's scores of one query into p; `visible` are the keys [begin, end) of the tile that
// it sees.
void SoftmaxTile(float* weights, int64_t tokens, int64_t begin, int64_t end, float largest,
                 float shrink, float* total) {
  const F32 d;
  constexpr int64_t kVectors = 16 / kLanes;
  const VF32 shift = hn::Set(d, largest == kMinusInfinity ? 0.0F : largest);
  VF32 lanes[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) lanes[v] = hn::Zero(d);
  const bool whole = begin == 0 && end == tokens;
  for (int64_t t = 0; t < tokens; t += 16) {
    for (int64_t v = 0; v < kVectors; ++v) {
      float* at = weights + t + v * kLanes;
      VF32 p = Exp(hn::Sub(hn::LoadU(d, at), shift));
      if (!whole) {
        const VF32 index = hn::Iota(d, static_cast<float>(t + v * kLanes));
        const auto seen = hn::And(hn::Ge(index, hn::Set(d, static_cast<float>(begin))),
                                  hn::Lt(index, hn::Set(d, static_cast<float>(end))));
        p = hn::IfThenElse(seen, p, hn::Zero(d));
      }
      hn::StoreU(p, d, at);
      lanes[v] = hn::Add(lanes[v], p);
    }
  }
  for (int64_t v = 0; v < kVectors; ++v) {
    const VF32 old = hn::LoadU(d, total + v * kLanes);
    hn::StoreU(Fma(old, hn::Set(d, shrink), lanes[v]), d, total + v * kLanes);
  }
}

// The largest of scores [begin, end), NaN left out; minus infinity if there is none.
float LargestScore(const float* scores, int64_t begin, int64_t end) {
  const F32 d;
  VF32 best = hn::Set(d, kMinusInfinity);
  int64_t t = begin;
  for (; t + kLanes <= end; t += kLanes) {
    const VF32 x = hn::LoadU(d, scores + t);
    best = hn::IfThenElse(hn::Gt(x, best), x, best);
  }
  float largest = hn::GetLane(hn::MaxOfLanes(d, best));
  for (; t < end; ++t) {
    if (scores[t] > largest) largest = scores[t];
  }
  return largest;
}

// exp(from - to) for queries 0 .. count-1; 1 where both are minus infinity, so that nothing
// changes.
void ShrinkFactors(const float* from, const float* to, int64_t count, float* shrink) {
  const F32 d;
  for (int64_t i = 0; i < count; i += kLanes) {
    const VF32 a = hn::Load(d, from + i);
    const VF32 b = hn::Load(d, to + i);
    const VF32 factor = Exp(hn::Sub(a, b));
    hn::Store(hn::IfThenElse(hn::Eq(a, b), hn::Set(d, 1.0F), factor), d, shrink + i);
  }
}

// scores[t] += slope * (distance + t) for the whole tile; distances beyond 2^24 would not be exact.
void AddSlope(float* scores, int64_t tokens, float slope, int64_t distance) {
  const F32 d;
  const VF32 slopes = hn::Set(d, slope);
  for (int64_t t = 0; t < tokens; t += kLanes) {
    const VF32 steps = hn::Iota(d, static_cast<float>(distance + t));
    hn::StoreU(Fma(slopes, steps, hn::LoadU(d, scores + t)), d, scores + t);
  }
}

struct TileSpan {
  int64_t start = 0;   // absolute position of the tile's first key
  int64_t tokens = 0;  // keys loaded
  bool finite = true;
};

// One key tile for the queries of one item.
void AttendTile(const AttentionArgs& args, const Buffers& b, const TileSpan& span, int64_t queries,
                State* state) {
  const int64_t dim = args.head_dim;
  HWY_ALIGN float largest[kMaxQueries] = {};
  int64_t begin[kMaxQueries] = {};
  int64_t end[kMaxQueries] = {};
  for (int64_t q = 0; q < queries;) {
    const int64_t rows = TileRows(queries - q);
    GemmArgs g;
    g.a = b.query + q * dim;
    g.a_row = 1;
    g.a_step = rows;
    g.b = b.keys;
    g.b_stride = args.block_tokens;
    g.k = dim;
    g.c = b.weights + q * kMaxBlockTokens;
    g.c_stride = kMaxBlockTokens;
    g.columns = args.block_tokens;
    RunGemm(rows, g);
    for (int64_t r = q; r < q + rows; ++r) {
      if (args.alibi_slopes != nullptr) {
        AddSlope(b.weights + r * kMaxBlockTokens, args.block_tokens, state->slope[r],
                 span.start - state->position[r]);
      }
      begin[r] = std::max<int64_t>(state->first[r] - span.start, 0);
      end[r] = std::clamp<int64_t>(state->position[r] + 1 - span.start, 0, args.block_tokens);
      const float here = LargestScore(b.weights + r * kMaxBlockTokens, begin[r], end[r]);
      largest[r] = here > state->largest[r] ? here : state->largest[r];
    }
    q += rows;
  }
  for (int64_t q = queries; q % 16 != 0; ++q) largest[q] = state->largest[q] = 0;
  ShrinkFactors(state->largest, largest, queries, state->shrink);
  for (int64_t q = 0; q < queries;) {
    const int64_t rows = span.finite ? TileRows(queries - q) : 1;
    int64_t used = 0;
    for (int64_t r = q; r < q + rows; ++r) {
      SoftmaxTile(b.weights + r * kMaxBlockTokens, args.block_tokens, begin[r], end[r], largest[r],
                  state->shrink[r], state->total[r]);
      state->largest[r] = largest[r];
      used = std::max(used, end[r]);
    }
    GemmArgs g;
    // A value that is not finite must not meet the zero weight of a row that does not see it.
    const int64_t skip = span.finite ? 0 : std::min(begin[q], used);
    g.a = b.weights + q * kMaxBlockTokens + skip;
    g.a_row = kMaxBlockTokens;
    g.a_step = 1;
    g.b = b.values + skip * b.padded_dim;
    g.b_stride = b.padded_dim;
    g.k = std::min(used, span.tokens) - skip;
    g.c = b.sums + q * b.padded_dim;
    g.c_stride = b.padded_dim;
    g.columns = b.padded_dim;
    g.shrink = state->shrink + q;
    RunGemm(rows, g);
    q += rows;
  }
}

// The queries of rows [row, row_end) of one sequence: query i is row i / heads, head i % heads.
void AttendRun(const AttentionArgs& args, const AttentionItem& item, const Buffers& b) {
  const int64_t dim = args.head_dim;
  const int64_t heads = item.head_end - item.head_begin;
  const int64_t queries = (item.row_end - item.row_begin) * heads;
  const int64_t kv_head = args.kv_of_head[item.head_begin];
  const int64_t row_values = (args.heads + 2 * args.kv_heads) * dim;
  const KvLayout layout{args.kv_heads, args.block_tokens, dim, args.kv_dtype};
  State state;
  int64_t last = 0;
  int64_t first = std::numeric_limits<int64_t>::max();
  for (int64_t q = 0; q < queries; ++q) {
    const int64_t position = args.positions[item.row_begin + q / heads];
    state.position[q] = position;
    state.first[q] = args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0;
    if (args.alibi_slopes != nullptr) {
      state.slope[q] = args.alibi_slopes[item.head_begin + q % heads];
    }
    state.largest[q] = kMinusInfinity;
    std::fill_n(state.total[q], 16, 0.0F);
    last = std::max(last, position);
    first = std::min(first, state.first[q]);
  }
  for (int64_t q = 0; q < queries;) {
    const int64_t rows = TileRows(queries - q);
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = args.qkv.f32() + (item.row_begin + (q + r) / heads) * row_values +
                          (item.head_begin + (q + r) % heads) * dim;
      for (int64_t i = 0; i < dim; ++i) b.query[q * dim + i * rows + r] = from[i] * args.scale;
    }
    q += rows;
  }
  std::fill_n(b.sums, queries * b.padded_dim, 0.0F);
  const int32_t* table = args.block_tables + args.table_of_row[item.row_begin] * args.table_stride;
  for (int64_t tile = first / args.block_tokens; tile * args.block_tokens <= last; ++tile) {
    TileSpan span;
    span.start = tile * args.block_tokens;
    span.tokens = std::min(args.block_tokens, last + 1 - span.start);
    span.finite = !LoadTile(args, layout.OffsetOfBlock(table[tile], kv_head), span.tokens, b);
    AttendTile(args, b, span, queries, &state);
  }
  for (int64_t q = 0; q < queries; ++q) {
    float* lanes = state.total[q];
    for (int width : {8, 4, 2, 1}) {
      for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
    }
    float* out = args.out.f32() +
                 ((item.row_begin + q / heads) * args.heads + item.head_begin + q % heads) * dim;
    const float* sums = b.sums + q * b.padded_dim;
    // Adding 0 makes a zero positive, whatever zeros of unseen keys were added on the way.
    for (int64_t i = 0; i < dim; ++i) out[i] = sums[i] / lanes[0] + 0.0F;
  }
}

void AttendItem(const AttentionArgs& args, const AttentionItem& item, float* scratch) {
  Buffers b;
  b.padded_dim = (args.head_dim + 15) / 16 * 16;
  const auto take = [&scratch](int64_t floats) {
    float* p = scratch;
    scratch += (floats + 15) / 16 * 16;
    return p;
  };
  b.query = take(kMaxQueries * args.head_dim);
  b.weights = take(kMaxQueries * kMaxBlockTokens);
  b.sums = take(kMaxQueries * b.padded_dim);
  b.keys = take(args.head_dim * args.block_tokens);
  b.values = take(args.block_tokens * b.padded_dim);
  b.rows = take(args.block_tokens * b.padded_dim);
  // Padding columns are multiplied along; they must be numbers.
  std::fill_n(b.values, args.block_tokens * b.padded_dim, 0.0F);
  // Rows of different sequences share nothing: one run after the other.
  for (int64_t row = item.row_begin; row < item.row_end;) {
    AttentionItem run = item;
    run.row_begin = row;
    while (row < item.row_end && args.table_of_row[row] == args.table_of_row[run.row_begin]) ++row;
    run.row_end = row;
    AttendRun(args, run, b);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pergola {
namespace {

// All six buffers at the largest head and block.
constexpr int64_t kBufferFloats = 2 * kMaxQueries * kMaxHeadDim + kMaxQueries * kMaxBlockTokens +
                                  3 * kMaxHeadDim * kMaxBlockTokens;
static_assert(kBufferFloats * static_cast<int64_t>(sizeof(float)) <= ThreadPool::kScratchBytes,
              "attention's buffers must fit into a thread's scratch");

// The end of the run of heads from `head` that read the same KV head, at most kMaxQueries long.
int64_t HeadRunEnd(const AttentionArgs& args, int64_t head) {
  int64_t end = head + 1;
  while (end < args.heads && args.kv_of_head[end] == args.kv_of_head[head] &&
         end - head < kMaxQueries) {
    ++end;
  }
  return end;
}

}  // namespace

void PagedAttentionCpu(CpuStream& stream, const AttentionArgs& args) {
  const int64_t rows = args.qkv.dim(0);
  if (rows == 0 || args.heads == 0) return;
  const auto run = PERGOLA_CHOOSE(stream.target(), AttendItem);
  int64_t head_runs = 0;
  int64_t longest = 0;
  for (int64_t h = 0; h < args.heads; ++head_runs) {
    const int64_t end = HeadRunEnd(args, h);
    longest = std::max(longest, end - h);
    h = end;
  }
  // Rows of an item: up to 64 query rows share a tile, but every thread should find a few items.
  const int64_t wanted_items = int64_t{4} * stream.threads();
  const int64_t spread = std::max<int64_t>(1, rows * head_runs / wanted_items);
  const int64_t item_rows = std::clamp<int64_t>(spread, 1, kMaxQueries / longest);
  const int64_t row_tiles = (rows + item_rows - 1) / item_rows;
  std::atomic<int64_t> next{0};
  // Late rows see more keys: they go first, so that no long item is left for the end.
  const auto work = [&](int thread) {
    auto* scratch = reinterpret_cast<float*>(stream.pool().Scratch(thread));
    for (;;) {
      const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= row_tiles * head_runs) return;
      AttentionItem item;
      const int64_t tile = row_tiles - 1 - i / head_runs;
      item.row_begin = tile * item_rows;
      item.row_end = std::min(rows, item.row_begin + item_rows);
      for (int64_t n = i % head_runs; n > 0; --n)
        item.head_begin = HeadRunEnd(args, item.head_begin);
      item.head_end = HeadRunEnd(args, item.head_begin);
      run(args, item, scratch);
    }
  };
  stream.pool().Run(work);
}

}  // namespace pergola
#endif  // HWY_ONCE
