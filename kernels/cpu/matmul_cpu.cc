#include "kernels/cpu/matmul_cpu.h"

#include <algorithm>

#include "kernels/cpu/targets.h"
#include "kernels/packed_layout.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_cpu.cc"
#include "hwy/foreach_target.h"
// foreach_target.h comes first.
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/matmul_tile-inl.h"
#include "kernels/cpu/quant-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pergola {
namespace HWY_NAMESPACE {

// Rows of x that share one pass over the weights; their sums (6 KiB) and their part of x stay in
// cache.
constexpr int64_t kGroupRows = 48;
// K is walked in blocks, so that a block's weights (32 KiB of bf16) stay in cache while the group's
// tiles use them.
constexpr int64_t kBlockK = 512;
// Decoded quantised weights kept at a time, [k][32] f32: 16 KiB.
constexpr int64_t kDecodedK = 128;
// 32 cache lines: at 10 GB/s and 100 ns of latency about 16 are in flight.
constexpr int64_t kPrefetchBytes = 2048;

// Largest tile: accumulators (rows times vectors) fill the registers but for weights and one value
// of x.
#if HWY_TARGET == HWY_AVX3
constexpr int kMaxTileRows = 12;
#elif HWY_TARGET == HWY_AVX2
constexpr int kMaxTileRows = 6;
#else
constexpr int kMaxTileRows = 4;
#endif
// Panels side by side for one row and for two: eight independent chains hide the latency of a
// multiply-add.
constexpr int kPanelsOfOneRow = kPanelVectors <= 8 ? 8 / kPanelVectors : 1;
constexpr int kPanelsOfTwoRows = kPanelVectors <= 4 ? 4 / kPanelVectors : 1;
constexpr int kNarrow = kPanelVectors < 2 ? kPanelVectors : 2;

struct RowTile {
  int64_t first_row = 0;
  int rows = 0;    // of x
  int padded = 0;  // R of the code that runs it; the rest are zeros
};

struct Group {
  RowTile tiles[kGroupRows];
  int tile_count = 0;
  int64_t first_row = 0;
  int64_t padded_rows = 0;
};

int PadRows(int64_t rows) {
  for (int r : {1, 2, 4, 6}) {
    if (rows <= r && r <= kMaxTileRows) return r;
  }
  return rows <= 8 && kMaxTileRows >= 8 ? 8 : kMaxTileRows;
}

Group CutRows(int64_t first_row, int64_t rows, int64_t max_tile_rows) {
  Group group;
  group.first_row = first_row;
  for (int64_t row = 0; row < rows;) {
    RowTile& tile = group.tiles[group.tile_count++];
    int64_t take = std::min(rows - row, max_tile_rows);
    // 13 to 16 rows: two tiles of 8 rather than 12 and 4.
    if (take == 12 && rows - row > 12 && rows - row <= 16) take = 8;
    tile.first_row = first_row + row;
    tile.rows = static_cast<int>(take);
    tile.padded = max_tile_rows == 1 ? 1 : PadRows(take);
    group.padded_rows += tile.padded;
    row += take;
  }
  return group;
}

// x of the group as [tile][k][R]: the tile's inner loop then reads one stream. A single row is used
// where it lies.
const float* PackX(const Group& group, const float* x, int64_t columns, float* packed) {
  if (group.tile_count == 1 && group.tiles[0].padded == 1) return x + group.first_row * columns;
  float* to = packed;
  for (int t = 0; t < group.tile_count; ++t) {
    const RowTile& tile = group.tiles[t];
    const int64_t padded = tile.padded;
    for (int64_t k0 = 0; k0 < columns; k0 += 16) {
      const int64_t k1 = std::min(k0 + 16, columns);
      for (int64_t r = 0; r < padded; ++r) {
        const float* from = x + (tile.first_row + r) * columns;
        for (int64_t k = k0; k < k1; ++k) to[k * padded + r] = r < tile.rows ? from[k] : 0.0F;
      }
    }
    to += padded * columns;
  }
  return packed;
}

template <DType kType>
HWY_INLINE void RunTileOf(int rows, int panels, TileArgs a) {
  if (panels > 1) {
    if constexpr (kPanelsOfTwoRows > 1) {
      if (rows == 2) return RunTile<kType, 2, kPanelsOfTwoRows * kPanelVectors>(a);
    }
    if constexpr (kPanelsOfOneRow > 1) {
      return RunTile<kType, 1, kPanelsOfOneRow * kPanelVectors>(a);
    }
  }
  constexpr int64_t kBytes = kType == DType::kF16 ? 2 : 4;  // of one column of one load
  for (int64_t c = 0; c < kPanelColumns; c += kNarrow * kLanes) {
    TileArgs part = a;
    part.w += c * kBytes;
    part.sums += c;
    switch (rows) {
      case 1:
        RunTile<kType, 1, kNarrow>(part);
        break;
      case 2:
        RunTile<kType, 2, kNarrow>(part);
        break;
      case 4:
        RunTile<kType, 4, kNarrow>(part);
        break;
#if HWY_TARGET == HWY_AVX3
      case 6:
        RunTile<kType, 6, kNarrow>(part);
        break;
      case 8:
        RunTile<kType, 8, kNarrow>(part);
        break;
#endif
      default:
        RunTile<kType, kMaxTileRows, kNarrow>(part);
        break;
    }
  }
}

// Where the results of one group and a few panels go.
struct Output {
  const MatmulArgs* args = nullptr;
  int64_t first_panel = 0;
  int panels = 0;
};

void WriteSums(const Output& out, const Group& group, const float* sums) {
  const int64_t outputs = out.args->w->rows();
  float* y = out.args->y.f32();
  const float* bias = out.args->bias;
  for (int t = 0; t < group.tile_count; ++t) {
    const RowTile& tile = group.tiles[t];
    for (int p = 0; p < out.panels; ++p) {
      const int64_t column = (out.first_panel + p) * kPanelColumns;
      const int64_t count = std::min(kPanelColumns, outputs - column);
      for (int r = 0; r < tile.rows; ++r) {
        float* to = y + (tile.first_row + r) * outputs + column;
        const float* from = sums + (p * tile.padded + r) * kPanelColumns;
        for (int64_t c = 0; c < count; ++c) {
          const float value = bias != nullptr ? from[c] + bias[column + c] : from[c];
          to[c] = out.args->accumulate ? to[c] + value : value;
        }
      }
    }
    sums += tile.padded * kPanelColumns;
  }
}

// One group over `panels` panels at `w`, dense weights.
template <DType kType>
void RunDense(const Group& group, const float* x, const uint8_t* w, const Output& out,
              float* sums) {
  const PackedMatrix& matrix = *out.args->w;
  const int64_t columns = matrix.columns();
  const int64_t block = group.tile_count == 1 ? std::max<int64_t>(columns, 1) : kBlockK;
  const int64_t block_bytes = DTypeBytes(kType, kBlockK) * kPanelColumns;
  TileArgs a;
  a.panel_stride = PanelBytes(kType, columns, 0);
  for (int64_t k = 0; k == 0 || k < columns; k += block) {
    const float* tile_x = x;
    float* tile_sums = sums;
    a.first = k == 0;
    a.k = std::min(block, columns - k);
    a.w = w + DTypeBytes(kType, k) * kPanelColumns;
    for (int t = 0; t < group.tile_count; ++t) {
      const int rows = group.tiles[t].padded;
      if (group.tile_count == 1) {
        a.ahead = a.w + kPrefetchBytes;
        a.ahead_step = StepBytes(kType);
      } else {
        // The tiles take turns in fetching the next block, so that memory works while the later
        // ones compute.
        a.ahead = a.w + block_bytes + block_bytes * t / group.tile_count;
        a.ahead_step = StepBytes(kType) / group.tile_count;
      }
      a.x = tile_x + k * rows;
      a.sums = tile_sums;
      RunTileOf<kType>(rows, out.panels, a);
      tile_x += columns * rows;
      tile_sums += rows * kPanelColumns;
    }
  }
}

// The same for quantised weights, decoded to f32 once for all rows of the group.
void RunQuantised(const Group& group, const float* x, const uint8_t* w, const Output& out,
                  float* sums) {
  const PackedMatrix& matrix = *out.args->w;
  const DType dtype = matrix.dtype();
  const int64_t columns = matrix.columns();
  const int64_t lead = matrix.lead();
  const int64_t panel_bytes = PanelBytes(dtype, columns, matrix.lead());
  const int64_t block_bytes = QuantPanelBlockBytes(dtype);
  const int64_t pieces = BlockValues(dtype) / kQuantPiece;  // of a block
  const int64_t piece_bytes = block_bytes / pieces;
  const int64_t ahead = std::max(kPrefetchBytes, block_bytes);
  const DecodePieceFunction decode = DecoderOf(dtype);
  const int64_t decoded_k = kDecodedK / out.panels;
  HWY_ALIGN float decoded[kDecodedK * kPanelColumns];
  TileArgs a;
  a.panel_stride = decoded_k * kPanelColumns * static_cast<int64_t>(sizeof(float));
  // `s` counts stored values, k = s - lead those of the cut. Pieces that lie before the cut are
  // not decoded.
  const int64_t s_first = lead / kQuantPiece * kQuantPiece;
  const int64_t s_last = (lead + columns + kQuantPiece - 1) / kQuantPiece * kQuantPiece;
  for (int64_t s = s_first; s == s_first || s < s_last; s += decoded_k) {
    const int64_t s_end = std::min(s + decoded_k, s_last);
    for (int p = 0; p < out.panels; ++p) {
      for (int64_t i = s / kQuantPiece; i < s_end / kQuantPiece; ++i) {
        const uint8_t* block = w + p * panel_bytes + i / pieces * block_bytes;
        for (int64_t line = i % pieces * piece_bytes; line < (i % pieces + 1) * piece_bytes;
             line += 64) {
          hwy::Prefetch(block + line + ahead);
        }
        decode(block, i % pieces, decoded + (p * decoded_k + i * kQuantPiece - s) * kPanelColumns);
      }
    }
    const int64_t begin = std::max(s, lead);
    const int64_t end = std::min(s_end, lead + columns);
    a.first = s == s_first;
    a.k = std::max<int64_t>(end - begin, 0);
    a.w = reinterpret_cast<const uint8_t*>(decoded + (begin - s) * kPanelColumns);
    const float* tile_x = x;
    float* tile_sums = sums;
    for (int t = 0; t < group.tile_count; ++t) {
      const int rows = group.tiles[t].padded;
      a.x = tile_x + (begin - lead) * rows;
      a.sums = tile_sums;
      RunTileOf<DType::kF32>(rows, out.panels, a);
      tile_x += columns * rows;
      tile_sums += rows * kPanelColumns;
    }
  }
}

void RunGroup(const MatmulArgs& args, const Group& group, const float* x, int64_t panel_begin,
              int64_t panel_end) {
  const PackedMatrix& matrix = *args.w;
  const int64_t panel_bytes = PanelBytes(matrix.dtype(), matrix.columns(), matrix.lead());
  HWY_ALIGN float sums[(kGroupRows + kMaxTileRows) * kPanelColumns];
  const int rows = group.tile_count == 1 ? group.tiles[0].padded : 0;
  const int together = rows == 1 ? kPanelsOfOneRow : rows == 2 ? kPanelsOfTwoRows : 1;
  Output out;
  out.args = &args;
  for (int64_t p = panel_begin; p < panel_end; p += out.panels) {
    out.first_panel = p;
    out.panels = p + together <= panel_end ? together : 1;
    const uint8_t* w = matrix.data() + p * panel_bytes;
    switch (matrix.dtype()) {
      case DType::kF32:
        RunDense<DType::kF32>(group, x, w, out, sums);
        break;
      case DType::kF16:
        RunDense<DType::kF16>(group, x, w, out, sums);
        break;
      case DType::kBF16:
        RunDense<DType::kBF16>(group, x, w, out, sums);
        break;
      default:
        RunQuantised(group, x, w, out, sums);
        break;
    }
    WriteSums(out, group, sums);
  }
}

void MatmulPart(const MatmulArgs& args, const MatmulShare& part, float* scratch,
                int64_t scratch_floats) {
  const int64_t columns = args.w->columns();
  // Rows of x that fit into the scratch; rows too long for two of them go one by one, unpacked.
  const int64_t fit = columns == 0 ? kGroupRows : scratch_floats / columns;
  const int64_t tile_rows = fit < 2 ? 1 : fit < kMaxTileRows ? 2 : kMaxTileRows;
  const int64_t group_rows = tile_rows == 1 ? 1 : std::min(kGroupRows, fit / tile_rows * tile_rows);
  for (int64_t row = part.row_begin; row < part.row_end; row += group_rows) {
    const Group group = CutRows(row, std::min(group_rows, part.row_end - row), tile_rows);
    const float* x = PackX(group, args.x.f32(), columns, scratch);
    RunGroup(args, group, x, part.panel_begin, part.panel_end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pergola
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pergola {

void MatmulCpu(CpuStream& stream, const MatmulArgs& args) {
  const auto run = PERGOLA_CHOOSE(stream.target(), MatmulPart);
  ThreadPool& pool = stream.pool();
  RunShares(pool, args, [&](const MatmulShare& share, int thread) {
    run(args, share, reinterpret_cast<float*>(pool.Scratch(thread)),
        ThreadPool::kScratchBytes / static_cast<int64_t>(sizeof(float)));
  });
}

}  // namespace pergola
#endif  // HWY_ONCE
