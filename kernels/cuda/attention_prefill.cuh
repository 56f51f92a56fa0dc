// How the attention of prompts is shared out: which queries and which of their keys a block has.
// The kernel that computes (attention_prefill.cu) and the one that adds up parts of keys
// (attention_prefill_parts.cu) both go by it.
#pragma once

#include "kernels/cuda/attention_launch.cuh"

namespace pergola {

// A unit is a block of queries: blockIdx.x is unit * splits + part in the first kernel.
struct PrefillGrid {
  const int32_t* tiles = nullptr;  // AttentionWork::prefill_tiles
  int tile_count = 0;
  int chunks = 0;   // units of a tile and head group
  int queries = 0;  // of a unit at most
  int splits = 1;
  float* sums = nullptr;    // [units, splits, queries, head_dim] if splits > 1
  float2* stats = nullptr;  // [units, splits, queries]: largest score, total
};

// Adds up the parts of every unit and writes the rows' results.
void SumPrefillParts(const CudaContext& context, const AttentionParams& p, const PrefillGrid& grid,
                     int64_t units);

// What a unit computes.
struct QueryBlock {
  int first_row = 0;
  int first_head = 0, heads = 0;  // of the group
  int first_query = 0;            // query q of the block is row first_row + (first_query + q) /
                                  // heads, head first_head + (first_query + q) % heads
  int count = 0;
};

// The last tiles first (they see most keys); count <= 0: nothing.
__device__ inline QueryBlock FindQueries(const AttentionParams& p, const PrefillGrid& grid,
                                         int unit) {
  const int group = unit % p.head_group_count;
  const int chunk = unit / p.head_group_count;
  const int tile = grid.tile_count - 1 - chunk / grid.chunks;
  QueryBlock block;
  block.first_row = grid.tiles[2 * tile];
  block.first_head = p.head_groups[2 * group];
  block.heads = p.head_groups[2 * group + 1];
  block.first_query = chunk % grid.chunks * grid.queries;
  const int left = grid.tiles[2 * tile + 1] * block.heads - block.first_query;
  block.count = block.first_row < 0 ? 0 : left < grid.queries ? left : grid.queries;
  return block;
}

// The keys [first, end) that some query of a unit sees, and how their tiles are cut into parts.
struct UnitKeys {
  int first = 0, end = 0;
  int first_tile = 0, tiles = 0;
  int part_tiles = 0, parts = 0;
};

// Of a unit with queries.
__device__ inline UnitKeys FindKeys(const AttentionParams& p, const PrefillGrid& grid,
                                    const QueryBlock& block) {
  const int position = p.positions[block.first_row];
  UnitKeys keys;
  keys.first = FirstKey(p, position + block.first_query / block.heads);
  keys.end = position + (block.first_query + block.count - 1) / block.heads + 1;
  keys.first_tile = keys.first / kKeyTile;
  keys.tiles = (keys.end - 1) / kKeyTile - keys.first_tile + 1;
  keys.part_tiles = (keys.tiles + grid.splits - 1) / grid.splits;
  keys.parts = (keys.tiles + keys.part_tiles - 1) / keys.part_tiles;
  return keys;
}

}  // namespace pergola
