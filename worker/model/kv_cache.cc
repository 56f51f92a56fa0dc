#include "worker/model/kv_cache.h"

#include "kernels/decoder_ops.h"

namespace pergola {

int64_t KvShape::block_bytes() const {
  return DTypeBytes(dtype, kv_heads_local * block_tokens * head_dim);
}

KvCache::KvCache(const KvShape& shape, int64_t block_count, Stream& stream) : shape_(shape) {
  const int64_t bytes = block_count * shape.block_bytes();
  for (int64_t i = 0; i < shape.layers.size(); ++i) {
    layers_.push_back(Layer{DeviceBuffer(stream, bytes), DeviceBuffer(stream, bytes)});
  }
}

int64_t KvCache::bytes() const {
  int64_t total = 0;
  for (const Layer& layer : layers_) total += layer.k.size() + layer.v.size();
  return total;
}

void KvCache::Copy(Stream& stream, int64_t from, int64_t to) const {
  for (const Layer& layer : layers_) {
    CopyBlockArgs args;
    args.from = from;
    args.to = to;
    args.block_bytes = shape_.block_bytes();
    args.k_cache = layer.k.data();
    args.v_cache = layer.v.data();
    CopyBlock(stream, args);
  }
}

}  // namespace pergola
