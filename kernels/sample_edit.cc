// Steps 1 to 6 of sample.h: what may change a logit before the choice.
#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/sample_math.h"
#include "kernels/sample_ngram.h"
#include "kernels/sample_space.h"

namespace pergola {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Marks an id in `counts` as seen in the prompt; the other bits count the new ones.
constexpr uint32_t kSeen = uint32_t{1} << 31;

bool Known(int32_t id, int64_t vocabulary) {
  return id >= 0 && id < vocabulary;
}

// Penalties: counts the history, then visits each of its ids once.
void Penalise(const SampleRow& row, int64_t vocabulary, const SampleSpace& space) {
  std::memset(space.counts, 0, static_cast<size_t>(vocabulary) * sizeof(uint32_t));
  for (int64_t i = 0; i < row.history_count; ++i) {
    const int32_t id = row.history[i];
    if (!Known(id, vocabulary)) continue;
    if (i >= row.prompt_tokens) ++space.counts[id];
    space.counts[id] |= kSeen;
  }
  for (int64_t i = 0; i < row.history_count; ++i) {
    const int32_t id = row.history[i];
    if (!Known(id, vocabulary) || space.counts[id] == 0) continue;
    const int64_t count = space.counts[id] & ~kSeen;
    space.counts[id] = 0;
    float& logit = space.edited[id];
    logit = PenaliseCount(PenaliseRepetition(logit, row.repetition_penalty), count, row);
  }
}

void ApplyMask(const uint8_t* mask, int64_t vocabulary, float* logits) {
  for (int64_t begin = 0; begin < vocabulary; begin += 8) {
    const uint8_t allowed = mask[begin / 8];
    if (allowed == 0xff) continue;
    const int64_t count = std::min<int64_t>(8, vocabulary - begin);
    for (int64_t i = 0; i < count; ++i) {
      if ((allowed >> i & 1) == 0) logits[begin + i] = kMinusInfinity;
    }
  }
}

}  // namespace

void EditLogits(const SampleRow& row, int64_t vocabulary, const SampleSpace& space) {
  std::memcpy(space.edited, row.logits, static_cast<size_t>(vocabulary) * sizeof(float));
  for (int64_t i = 0; i < row.bias_count; ++i) {
    float& logit = space.edited[row.bias_ids[i]];
    logit = AddBias(logit, row.biases[i]);
  }
  if (row.looks_back()) {
    Penalise(row, vocabulary, space);
    if (row.no_repeat_ngram_size > 0) {
      ForEachRepeatedNgramEnd(row, space.borders, [&](int32_t id) {
        if (Known(id, vocabulary)) space.edited[id] = kMinusInfinity;
      });
    }
  }
  if (row.suppresses()) {
    for (int64_t i = 0; i < row.suppressed_count; ++i) {
      space.edited[row.suppressed[i]] = kMinusInfinity;
    }
  }
  if (row.mask != nullptr) ApplyMask(row.mask, vocabulary, space.edited);
  if (row.mask_ids != nullptr) {
    auto* bitmap = reinterpret_cast<uint8_t*>(space.counts);
    std::memset(bitmap, 0, static_cast<size_t>((vocabulary + 7) / 8));
    for (int64_t i = 0; i < row.mask_id_count; ++i) {
      bitmap[row.mask_ids[i] / 8] |= static_cast<uint8_t>(1U << (row.mask_ids[i] % 8));
    }
    ApplyMask(bitmap, vocabulary, space.edited);
  }
}

}  // namespace pergola
