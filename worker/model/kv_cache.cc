#include "worker/model/kv_cache.h"

#include "kernels/decoder_ops.h"

namespace pergola {

int64_t KvShape::block_bytes() const {
  return DTypeBytes(dtype, kv_heads_local * block_tokens * head_dim);
}

KvCache::KvCache(const KvShape& shape, int64_t block_count, Stream& stream)
    : shape_(shape),
      part_bytes_(block_count * shape.block_bytes()),
      memory_(stream, block_count * shape.all_layers_block_bytes()) {}

void KvCache::Copy(Stream& stream, int64_t from, int64_t to) const {
  for (int64_t layer = shape_.layers.begin; layer < shape_.layers.end; ++layer) {
    CopyBlockArgs args;
    args.from = from;
    args.to = to;
    args.block_bytes = shape_.block_bytes();
    args.k_cache = K(layer);
    args.v_cache = V(layer);
    CopyBlock(stream, args);
  }
}

}  // namespace pergola
