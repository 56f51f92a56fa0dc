// From one row of f32 logits to one token id, and to log-probabilities. What `Sample` does, in the
// order in which Hugging Face generate (transformers 5.23, GenerationMixin._get_logits_processor)
// applies its processors and warpers. l is a logit, c how often the id occurs among the new ids
// (history from prompt_tokens on); steps 1 to 3 compute in f32, a finite result beyond f32's range
// is the nearest finite f32:
//   1 bias        l + bias of the id (minus infinity forbids it)
//   2 repetition  of ids in history: l / penalty if l > 0, else l * penalty (Keskar et al., "CTRL",
//                 2019, section 4.1, with the sign rule that Hugging Face added)
//   3 presence,   (l - c * frequency_penalty) - presence_penalty if c > 0 (OpenAI API reference,
//     frequency   "Frequency and presence penalties")
//   4 n-grams     forbidden: ids that would complete an n-gram that is in history already
//   5 minimum     forbidden: `suppressed`, while position - prompt_tokens < min_new_tokens
//   6 mask        forbidden: ids outside the mask
// At temperature 0 the token is the largest processed logit. Else, over the ids not forbidden whose
// logit is finite:
//   x       (l - largest l) * (1 / temperature), in double; weight = SoftmaxWeight(x)
//   7 top_k       the first top_k of the list sorted by (l descending, id ascending)
//   8 top_p       the shortest prefix of that list whose running sum of weights reaches top_p *
//                 total, at least one id (Holtzman et al., "The Curious Case of Neural Text
//                 Degeneration", 2020, section 3.1)
//   9 min_p       those with weight >= min_p; the largest weight is 1 (Nguyen et al., "Min-p
//                 Sampling", 2024, section 3)
//  10 typical_p   the shortest prefix of the list sorted by (|x - mean x| ascending, id ascending)
//                 whose running sum reaches typical_p * total, at least one id (Meister et al.,
//                 "Locally Typical Sampling", 2022, section 4). With mean x = sum(weight * x) /
//                 total, |x - mean x| is |log p + entropy|: the normaliser cancels
//  11 draw        the largest l / temperature - log(-log(UniformDraw(seed, index, position, id))),
//                 in double (Gumbel-max, DESIGN section 5)
// total and sum(weight * x) are of the survivors of the steps before, ids ascending in eight lanes
// (id % 8) folded 4, 2, 1. Running sums are in double, in the order of the list. Ties go to the
// lowest id. Where Hugging Face keeps every id tied with the last kept one, the list is cut here.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu_stream.h"
#include "kernels/tensor.h"

namespace pergola {

// Everything is borrowed. The defaults process nothing.
struct SampleRow {
  const float* logits = nullptr;  // [vocabulary]
  float temperature = 0;          // 0: argmax of the processed logits
  uint32_t top_k = 0;             // 0: no limit
  float top_p = 1;                // 1: no limit
  uint64_t seed = 0;
  uint32_t index = 0;                 // of the sequence within its request
  uint32_t position = 0;              // of the token to be drawn
  const uint8_t* mask = nullptr;      // bitmap of allowed ids, bit i%8 of byte i/8; nullptr: all
  const int32_t* mask_ids = nullptr;  // or the allowed ids themselves, in any order
  int64_t mask_id_count = 0;

  float min_p = 0;      // 0: no limit
  float typical_p = 1;  // 0 or 1: no limit

  float repetition_penalty = 1;  // 0 or 1: none
  float presence_penalty = 0;
  float frequency_penalty = 0;
  uint32_t no_repeat_ngram_size = 0;  // 0: none
  uint32_t min_new_tokens = 0;
  const int32_t* suppressed = nullptr;
  int64_t suppressed_count = 0;
  const int32_t* bias_ids = nullptr;  // each once
  const float* biases = nullptr;      // no NaN, no plus infinity
  int64_t bias_count = 0;
  // The ids of the positions before `position`, if a penalty or the n-grams look back. An id
  // outside the vocabulary stands for a token that never was: it is passed over.
  const int32_t* history = nullptr;
  int64_t history_count = 0;
  int64_t prompt_tokens = 0;  // of the history; the rest are new

  // Whether the history is looked at.
  bool looks_back() const {
    return (repetition_penalty != 0 && repetition_penalty != 1) || presence_penalty != 0 ||
           frequency_penalty != 0 || no_repeat_ngram_size > 0;
  }
  bool suppresses() const {
    return suppressed_count > 0 &&
           static_cast<int64_t>(position) < prompt_tokens + static_cast<int64_t>(min_new_tokens);
  }
  // Whether steps 1 to 6 may change a logit.
  bool edits() const {
    return mask != nullptr || mask_ids != nullptr || bias_count > 0 || looks_back() || suppresses();
  }
};

// Scratch of one row whose history holds at most `history` ids.
int64_t SampleWorkspaceBytes(int64_t vocabulary, int64_t history = 0);

// The id, or -1 if a logit is NaN or plus infinity (allowed or not), or no allowed id is finite.
// Uses SampleWorkspaceBytes(vocabulary, row.history_count) of the stream's workspace.
int32_t Sample(CpuStream& stream, const SampleRow& row, int64_t vocabulary);
int32_t SampleRef(const SampleRow& row, int64_t vocabulary);
// The ids among which the draw chooses, ascending; none where Sample is -1. The second is the slow
// specification; both are for tests, and allocate.
std::vector<int32_t> Survivors(CpuStream& stream, const SampleRow& row, int64_t vocabulary);
std::vector<int32_t> SurvivorsRef(const SampleRow& row, int64_t vocabulary);

inline constexpr int kMaxTopLogprobs = 20;

// Natural logarithms of probabilities under the softmax of the unprocessed logits: (l - largest) -
// log(total of SoftmaxWeight(l - largest)) in double, rounded to f32 once. As total has one order
// of addition, the bits depend on the logits alone. Plain bytes: ranks send it to each other.
struct TokenLogprobs {
  float logprob = 0;  // of the id asked for
  int32_t top_count = 0;
  int32_t top_ids[kMaxTopLogprobs] = {};  // most probable first, ties by id
  float top_logprobs[kMaxTopLogprobs] = {};
};

// False if a logit is NaN or plus infinity, or none is finite. `top`: 0 to kMaxTopLogprobs; fewer
// are given if fewer ids are finite.
bool LogprobsRef(const float* logits, int64_t vocabulary, int32_t id, int top,
                 TokenLogprobs* result);

// What is wanted of one row of logits: a token, the scoring of a given token, or both.
struct SampleTask {
  SampleRow row;
  bool draw = false;
  bool logprobs = false;  // of the drawn token too, and of the `top` most probable ids
  int top = 0;
  int32_t target = -1;  // an id to be scored; -1: none
  int target_top = 0;

  // Answers.
  bool valid = false;  // false: as -1 of Sample, the rest then means nothing
  int32_t id = -1;     // drawn
  TokenLogprobs id_logprobs;
  TokenLogprobs target_logprobs;
};

// All tasks, dealt over the stream's threads. Uses SampleWorkspaceBytes(vocabulary, longest
// history) of the workspace per thread; an answer does not depend on which thread gave it.
void SampleTasks(CpuStream& stream, SampleTask* tasks, int64_t count, int64_t vocabulary);

struct ValueAndId {
  float value;
  int32_t id;  // -1: the row holds a NaN or plus infinity, or nothing finite
};
// Largest logit and its lowest id, ids counted from `first_id`: the local half of a greedy choice
// over a vocabulary that is cut over ranks.
ValueAndId ArgMax(CpuStream& stream, const float* logits, int64_t values, int32_t first_id);

}  // namespace pergola
