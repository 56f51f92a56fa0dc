// What the tests of attention on every device share: sequences in a shuffled paged cache and a
// query row for each of their positions.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/decoder_ops.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {

struct AttentionShape {
  int64_t heads = 4, kv_heads = 2, head_dim = 64, block_tokens = 32, window = 0;
  DType kv_dtype = DType::kF32;
};

// Sequences of given lengths in a shuffled paged cache, and a query row for each position of each.
struct AttentionScene {
  AttentionShape shape;
  std::vector<int64_t> lengths;
  std::vector<uint8_t> k, v;
  std::vector<int32_t> kv_of_head, tables;
  int64_t table_stride = 0;
  std::vector<float> qkv;  // row p of sequence s is the query at position p
  std::vector<int32_t> positions, table_of_row;
  float scale = 0;
  std::vector<float> slopes;  // ALiBi's; empty: none

  int64_t Rows() const { return static_cast<int64_t>(positions.size()); }
  int64_t RowValues() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_dim; }
  uint8_t* CacheAt(std::vector<uint8_t>* cache, int64_t sequence, int64_t position, int64_t head) {
    const int64_t block = tables[sequence * table_stride + position / shape.block_tokens];
    const int64_t value =
        ((block * shape.kv_heads + head) * shape.block_tokens + position % shape.block_tokens) *
        shape.head_dim;
    return cache->data() + DTypeBytes(shape.kv_dtype, value);
  }
  // The rows [begin, end) as one step.
  AttentionArgs Args(int64_t begin, int64_t end, std::vector<float>* out) {
    AttentionArgs args;
    out->assign(static_cast<size_t>((end - begin) * shape.heads * shape.head_dim), -7.0F);
    args.qkv = Tensor(qkv.data() + begin * RowValues(), DType::kF32, {end - begin, RowValues()});
    args.heads = shape.heads;
    args.kv_heads = shape.kv_heads;
    args.head_dim = shape.head_dim;
    args.kv_of_head = kv_of_head.data();
    args.scale = scale;
    args.alibi_slopes = slopes.empty() ? nullptr : slopes.data();
    args.window = shape.window;
    args.positions = positions.data() + begin;
    args.table_of_row = table_of_row.data() + begin;
    args.block_tables = tables.data();
    args.table_stride = table_stride;
    args.block_tokens = shape.block_tokens;
    args.kv_dtype = shape.kv_dtype;
    args.k_cache = k.data();
    args.v_cache = v.data();
    args.out = Tensor(out->data(), DType::kF32, {end - begin, shape.heads * shape.head_dim});
    return args;
  }
};

inline AttentionScene MakeScene(const AttentionShape& shape, const std::vector<int64_t>& lengths) {
  AttentionScene s;
  s.shape = shape;
  s.lengths = lengths;
  s.scale = 1.3F / std::sqrt(static_cast<float>(shape.head_dim));
  for (int64_t length : lengths) {
    s.table_stride = std::max(s.table_stride, length / shape.block_tokens + 1);
  }
  const auto sequences = static_cast<int64_t>(lengths.size());
  const int64_t blocks = sequences * s.table_stride;
  // Blocks go backwards, so that a table is not the identity.
  for (int64_t i = 0; i < blocks; ++i) s.tables.push_back(static_cast<int32_t>(blocks - 1 - i));
  const int64_t values = blocks * shape.kv_heads * shape.block_tokens * shape.head_dim;
  s.k = RandomFileRows(shape.kv_dtype, 1, values, 21);
  s.v = RandomFileRows(shape.kv_dtype, 1, values, 22);
  for (int64_t h = 0; h < shape.heads; ++h) {
    s.kv_of_head.push_back(static_cast<int32_t>(h * shape.kv_heads / shape.heads));
  }
  for (int64_t q = 0; q < sequences; ++q) {
    for (int64_t p = 0; p < lengths[q]; ++p) {
      s.positions.push_back(static_cast<int32_t>(p));
      s.table_of_row.push_back(static_cast<int32_t>(q));
    }
  }
  s.qkv = RandomValues(static_cast<int64_t>(s.positions.size()) * s.RowValues(), 23);
  return s;
}

}  // namespace pergola
