// How a GPU shares out the attention of a step: which rows go through the kernel for prompts and
// which through the one for single tokens. Made on the host once per step, the head groups once per
// model; the CPU needs none of it.
#pragma once

#include <cstdint>
#include <vector>

namespace pergola {

// Most rows of a prefill tile.
inline constexpr int64_t kAttentionTileRows = 128;
// Most heads of a head group: four tensor core tiles of 16 rows.
inline constexpr int64_t kAttentionGroupHeads = 64;
// A run of rows of one sequence up to this length is computed row by row, each split over its keys
// among many multiprocessors: as one prefill tile it would occupy one per KV head.
inline constexpr int64_t kDecodeRunRows = 8;

// Keys of a tile, and tiles of a part of a decode row at least: less is not worth a block.
inline constexpr int64_t kAttentionKeyTile = 64;
inline constexpr int64_t kMinPartTiles = 2;
// The same of a prefill tile, whose parts cost more to add up, and parts at most: a lane for each.
inline constexpr int64_t kMinPrefillPartTiles = 4;
inline constexpr int64_t kMaxPrefillParts = 32;
// Parts of a decode row at most: their factors must fit into a block's shared memory.
inline constexpr int64_t kMaxDecodeParts = 128;

// What PagedAttentionCuda computes: the rows of the two lists and no other. Pointers are to device
// memory unless stated; a list without entries may be nullptr.
struct AttentionWork {
  // [prefill_tile_count, 2]: first row, rows (1 .. kAttentionTileRows) of one sequence, positions
  // rising by one. A first row of -1: nothing to do.
  const int32_t* prefill_tiles = nullptr;
  int64_t prefill_tile_count = 0;
  // At least 1 + the position of every row of a tile: into how many parts its keys are split at
  // most. 0: they are not.
  int64_t longest_prompt = 0;
  // [decode_row_count]; -1 (the padding of a graph) or a row at position -1: nothing to do.
  const int32_t* decode_rows = nullptr;
  int64_t decode_row_count = 0;
  // At least 1 + the position of every decode row. It chooses into how many parts a row's keys are
  // split at most, so a graph keeps the value it was captured with.
  int64_t longest_context = 0;
  // [head_group_count, 2]: first head, heads (1 .. largest_head_group) that read one KV head; each
  // head is in one group. PlanHeadGroups makes them.
  const int32_t* head_groups = nullptr;
  int64_t head_group_count = 0;
  int64_t largest_head_group = 0;
  // [decode_row_count * head_group_count] zeros, and zeros again when the kernel is done: the parts
  // of a row count themselves here, and the last one adds them up.
  int32_t* decode_done = nullptr;
};

// The lists of one step, on the host.
struct AttentionPlan {
  std::vector<int32_t> prefill_tiles;
  std::vector<int32_t> decode_rows;
  int64_t longest_prompt = 0, longest_context = 0;
};

// Plans the rows [0, rows); rows at position -1 are left out. Reuses the vectors' memory; a plan
// has at most `rows` tiles and `rows` decode rows.
void PlanAttention(const int32_t* positions, const int32_t* table_of_row, int64_t rows,
                   AttentionPlan* plan);

// The head groups, [groups, 2]: runs of heads that read one KV head, cut evenly where they are
// longer than kAttentionGroupHeads.
std::vector<int32_t> PlanHeadGroups(const int32_t* kv_of_head, int64_t heads);
// Heads of the largest of these groups.
int64_t LargestHeadGroup(const std::vector<int32_t>& groups);

// Into how many parts the keys of a decode row are split at most, for `units` pairs of a row and a
// head group with `tiles` key tiles each: so many that every multiprocessor has its two blocks and
// the last wave of blocks leaves few idle.
int64_t DecodeParts(int multiprocessors, int64_t units, int64_t tiles);
// No DecodeParts above 1 times its units is larger.
int64_t LargestDecodeParts(int multiprocessors);

// The same for `units` blocks of queries of prefill tiles, where those alone leave multiprocessors
// idle (few heads on a rank, a short chunk of a long prompt): all parts together are one wave.
int64_t PrefillParts(int multiprocessors, int64_t units, int64_t tiles);
// No PrefillParts above 1 times its units is larger.
int64_t LargestPrefillParts(int multiprocessors);

}  // namespace pergola
