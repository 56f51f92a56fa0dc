// Where a token's K or V of one head lies in the paged cache of a layer: [blocks, kv_heads,
// block_tokens, head_dim].
#pragma once

#include <cstdint>

#include "model/dtype.h"

namespace pergola {

// Largest KV block: attention's key tile.
inline constexpr int64_t kMaxBlockTokens = 128;

struct KvLayout {
  int64_t kv_heads = 0;
  int64_t block_tokens = 0;
  int64_t head_dim = 0;
  DType dtype = DType::kF32;

  // Bytes of block_tokens x head_dim of one head: contiguous.
  int64_t HeadBlockBytes() const { return DTypeBytes(dtype, block_tokens * head_dim); }
  int64_t OffsetOfBlock(int64_t block, int64_t kv_head) const {
    return (block * kv_heads + kv_head) * HeadBlockBytes();
  }
  // `slot` is block * block_tokens + offset in the block.
  int64_t OffsetOfSlot(int64_t slot, int64_t kv_head) const {
    return OffsetOfBlock(slot / block_tokens, kv_head) +
           DTypeBytes(dtype, slot % block_tokens * head_dim);
  }
};

}  // namespace pergola
