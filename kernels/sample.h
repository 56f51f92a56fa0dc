// From one row of f32 logits to one token id. Order of processing as Hugging Face generate
// documents it: mask, then temperature, top_k, top_p; the draw is Gumbel-max over the survivors
// (DESIGN section 5). Ties go to the lowest id; cumulative sums run in double over the list sorted
// by (logit descending, id ascending).
//
// Exactly, over the allowed ids with a finite logit l:
//   top_k   the first top_k of the sorted list
//   top_p   weight = SoftmaxWeight((l - largest l) * (1 / temperature)); total = the survivors'
//   weights, ids ascending in
//           eight lanes (id % 8) folded 4, 2, 1; kept is the shortest prefix of the sorted list
//           whose running sum reaches top_p * total, at least one id
//   draw    the largest l / temperature - log(-log(UniformDraw(seed, index, position, id))), in
//   double
#pragma once

#include <cstdint>

#include "kernels/stream.h"
#include "kernels/tensor.h"

namespace pergola {

struct SampleRow {
  const float* logits = nullptr;  // [vocabulary]
  float temperature = 0;          // 0: argmax of the allowed ids
  uint32_t top_k = 0;             // 0: no limit
  float top_p = 1;                // 1: no limit
  uint64_t seed = 0;
  uint32_t index = 0;             // of the sequence within its request
  uint32_t position = 0;          // of the token to be drawn
  const uint8_t* mask = nullptr;  // bitmap of allowed ids, bit i%8 of byte i/8; nullptr: all
};

// The id, or -1 if a logit is NaN or plus infinity (allowed or not), or no allowed id is finite.
// Uses at most SampleWorkspaceBytes of `stream`.
int32_t Sample(Stream& stream, const SampleRow& row, int64_t vocabulary);
int32_t SampleRef(const SampleRow& row, int64_t vocabulary);
int64_t SampleWorkspaceBytes(int64_t vocabulary);

struct ValueAndId {
  float value;
  int32_t id;  // -1: the row holds a NaN or plus infinity, or nothing finite
};
// Largest logit and its lowest id, ids counted from `first_id`: the local half of a greedy choice
// over a vocabulary that is cut over ranks.
ValueAndId ArgMax(Stream& stream, const float* logits, int64_t values, int32_t first_id);

}  // namespace pergola
