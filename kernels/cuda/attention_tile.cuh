// What the attention kernels share: their arguments, key tiles in shared memory and how they are
// gathered from the paged cache, and the tensor core operands read from them.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cuda/device.cuh"
#include "kernels/decoder_ops.h"

namespace pergola {

inline constexpr float kLog2E = 1.44269504088896341F;
// Keys of a tile, at fixed absolute positions. A tile is gathered in parts of 16: a KV block holds
// whole parts (its tokens are a multiple of 16), so a part is contiguous.
inline constexpr int kKeyTile = static_cast<int>(kAttentionKeyTile);
inline constexpr int kPartKeys = 16;
inline constexpr int kParts = kKeyTile / kPartKeys;

// AttentionArgs as the kernels take it: by value, in the types they compute with.
struct AttentionParams {
  const void* qkv = nullptr;
  void* out = nullptr;
  DType activation = DType::kF32;  // of qkv and out
  const void* k_cache = nullptr;
  const void* v_cache = nullptr;
  const int32_t* kv_of_head = nullptr;
  const float* alibi_slopes = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* table_of_row = nullptr;
  const int32_t* block_tables = nullptr;
  int64_t table_stride = 0;
  const int32_t* head_groups = nullptr;
  int32_t head_group_count = 0;
  int32_t largest_head_group = 0;
  int32_t heads = 0, kv_heads = 0, head_dim = 0, block_tokens = 0;
  int32_t window = 0;  // INT32_MAX: unlimited
  float scale = 0;
};

// A key tile or query tile of rows of kDim 16-bit values. The tensor cores read eight rows' 16-byte
// chunks of one column at a time (LoadMatrix4), which must lie in eight different bank groups: rows
// of whole 128 bytes have their chunks permuted by the row, others are an odd number of chunks
// apart.
template <int kDim>
struct TileLayout {
  static constexpr int kChunks = kDim / 8;
  static constexpr bool kPermuted = kChunks % 8 == 0;
  static constexpr int kRow = (kPermuted ? kChunks : kChunks | 1) * 8;  // in values
  static constexpr int64_t kTileBytes = int64_t{2} * kKeyTile * kRow;
  static __device__ int Offset(int row, int chunk) {
    return row * kRow + (kPermuted ? chunk ^ (row & 7) : chunk) * 8;
  }
  // The offset of (row, chunk + 2 * step), given that of (row, chunk) and chunk < 2: with the
  // permutation only bits 4 and 5 change within 64 values, so a lane keeps four offsets, not one
  // for each step.
  static __device__ int Step(int offset, int step) {
    return kPermuted ? (offset ^ (step % 4 * 16)) + step / 4 * 64 : offset + step * 16;
  }
};

// The first key a row at `position` sees.
__device__ inline int FirstKey(const AttentionParams& p, int position) {
  return position >= p.window ? position - p.window + 1 : 0;
}

__device__ inline const int32_t* TableOfRow(const AttentionParams& p, int row) {
  return p.block_tables + p.table_of_row[row] * p.table_stride;
}

// The block that holds part `part` of a sequence (positions from 16 * part); -1 if none of its keys
// is in [first, end), so that no entry of the table is read which names no block.
__device__ inline int PartBlock(const AttentionParams& p, const int32_t* table, int part, int first,
                                int end) {
  const int position = part * kPartKeys;
  if (position + kPartKeys <= first || position >= end) return -1;
  return table[position / p.block_tokens];
}

// Where the part lies in the cache, in values. Apart from PartBlock, so that a caller can let time
// pass before it needs what that reads.
__device__ inline int64_t PartOffset(const AttentionParams& p, int block, int kv_head, int part) {
  if (block < 0) return 0;
  const int64_t head_block = static_cast<int64_t>(block) * p.kv_heads + kv_head;
  return (head_block * p.block_tokens + part * kPartKeys % p.block_tokens) * p.head_dim;
}

// CopyTile for tiles that have hidden keys (kEdge) or none.
template <bool kEdge, typename T, int kDim, int kThreads>
__device__ inline void CopyParts(T* shared, const T* cache, const int64_t* offsets, int first,
                                 int end) {
  using Layout = TileLayout<kDim>;
  constexpr int kPartChunks = kPartKeys * Layout::kChunks;
  constexpr int kPassKeys = kThreads / Layout::kChunks;
  // Passes 8 keys or a multiple apart permute alike: a thread's places are known steps apart.
  constexpr bool kEven = kThreads % Layout::kChunks == 0 && kPassKeys % 8 == 0;
  const int thread = static_cast<int>(threadIdx.x);
  const int own_key = thread / Layout::kChunks;
  const int own = Layout::Offset(own_key, thread % Layout::kChunks);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const T* from = cache + offsets[part] + thread * 8;
#pragma unroll
    for (int pass = 0; pass * kThreads < kPartChunks; ++pass) {
      const int i = pass * kThreads + thread;
      if (kPartChunks % kThreads != 0 && i >= kPartChunks) continue;
      const int key = part * kPartKeys + (kEven ? own_key + pass * kPassKeys : i / Layout::kChunks);
      const int to = kEven ? own + (part * kPartKeys + pass * kPassKeys) * Layout::kRow
                           : Layout::Offset(key, i % Layout::kChunks);
      CopyAsync16(shared + to, from + pass * kThreads * 8, !kEdge || (key >= first && key < end));
    }
  }
}

// Starts the copy of the keys [first, end) of a tile (counted from its beginning) to shared memory,
// zeros for the others: what lies there may be NaN, and nothing times NaN is a NaN.
template <typename T, int kDim, int kThreads>
__device__ inline void CopyTile(T* shared, const T* cache, const int64_t* offsets, int first,
                                int end) {
  if (first <= 0 && end >= kKeyTile) {
    CopyParts<false, T, kDim, kThreads>(shared, cache, offsets, first, end);
  } else {
    CopyParts<true, T, kDim, kThreads>(shared, cache, offsets, first, end);
  }
}

// Where a lane reads operands from: RowLane for A (rows [row, row + 16), values [0, 16)) and for
// LoadValues (keys [row, row + 16)), KeyLane for LoadKeys (keys [key, key + 16)).
template <int kDim>
__device__ inline int RowLane(int row, int lane) {
  return TileLayout<kDim>::Offset(row + lane % 16, lane / 16);
}
template <int kDim>
__device__ inline int KeyLane(int key, int lane) {
  return TileLayout<kDim>::Offset(key + lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

// Operand A: 16 rows from `row` on, values [16 * step, 16 * step + 16).
template <int kDim, typename T>
__device__ inline void LoadRows(uint32_t (&a)[4], const T* tile, int row_lane, int row, int step) {
  using Layout = TileLayout<kDim>;
  LoadMatrix4(a, tile + Layout::Step(row_lane, step) + row * Layout::kRow);
}

// Operand B of q k^T, twice: keys [key, key + 8) in b[0..1], [key + 8, key + 16) in b[2..3]; the
// same values as above.
template <int kDim, typename T>
__device__ inline void LoadKeys(uint32_t (&b)[4], const T* tile, int key_lane, int key, int step) {
  using Layout = TileLayout<kDim>;
  LoadMatrix4(b, tile + Layout::Step(key_lane, step) + key * Layout::kRow);
}

// Operand B of p v, twice: keys [key, key + 16), values [16 * step, 16 * step + 8) in b[0..1], the
// eight after them in b[2..3].
template <int kDim, typename T>
__device__ inline void LoadValues(uint32_t (&b)[4], const T* tile, int row_lane, int key,
                                  int step) {
  using Layout = TileLayout<kDim>;
  LoadMatrix4Transposed(b, tile + Layout::Step(row_lane, step) + key * Layout::kRow);
}

__device__ inline float LoadAs(DType dtype, const void* from, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(from)[i];
  if (dtype == DType::kF16) return ToFloat(static_cast<const __half*>(from)[i]);
  return ToFloat(static_cast<const __nv_bfloat16*>(from)[i]);
}
__device__ inline void StoreAs(DType dtype, void* to, int64_t i, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(to)[i] = value;
  } else if (dtype == DType::kF16) {
    static_cast<__half*>(to)[i] = FromFloat<__half>(value);
  } else {
    static_cast<__nv_bfloat16*>(to)[i] = FromFloat<__nv_bfloat16>(value);
  }
}

}  // namespace pergola
