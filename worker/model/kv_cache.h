// The K and V bytes of one rank's layers, allocated once. Which block holds what is the
// coordinator's business.
#pragma once

#include <cstdint>

#include "kernels/stream.h"
#include "kernels/tensor.h"
#include "model/dtype.h"
#include "model/layout.h"

namespace pergola {

struct KvShape {
  Range layers;
  int64_t kv_heads_local = 0;
  int64_t head_dim = 0;
  int64_t block_tokens = 0;
  DType dtype = DType::kF32;

  // Of K or of V, in one layer.
  int64_t block_bytes() const;
  // Of K and V together, in all layers of the rank.
  int64_t all_layers_block_bytes() const { return 2 * layers.size() * block_bytes(); }
};

class KvCache {
 public:
  // On the stream's device.
  KvCache(const KvShape& shape, int64_t block_count, Stream& stream);

  const KvShape& shape() const { return shape_; }
  int64_t bytes() const { return memory_.size(); }
  // [block_count, kv_heads_local, block_tokens, head_dim] of `layer`, which counts over the whole
  // model.
  void* K(int64_t layer) const { return Part(2 * (layer - shape_.layers.begin)); }
  void* V(int64_t layer) const { return Part(2 * (layer - shape_.layers.begin) + 1); }
  // Copies a block in every layer.
  void Copy(Stream& stream, int64_t from, int64_t to) const;

 private:
  uint8_t* Part(int64_t index) const { return memory_.data() + index * part_bytes_; }

  KvShape shape_;
  int64_t part_bytes_;   // of K or of V in one layer
  DeviceBuffer memory_;  // K and V of the first layer, of the next, ...
};

}  // namespace pergola
