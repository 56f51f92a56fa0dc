// What the sampling kernels (kernels/cuda/sample.h) are asked and what they answer: plain structs
// that host and device share. A job is one reading of one row of logits, this rank's slice of the
// vocabulary only.
//
// Exact are: logits after edits and mask (bit for bit those of kernels/sample.h), the order (logit
// descending, id ascending), the largest logit, and that no id outside an answer can win a draw.
// The totals are sums of doubles in a fixed order of this device's own, which is not the order of
// kernels/sample.h: they are the same in every run, and agree with it within TotalError.
#pragma once

#include <cstdint>

#include "kernels/sample.h"

namespace pergola {

// Most ids that a job can ask for in order.
inline constexpr int32_t kMaxCandidates = 1024;
// Most ids that a draw over all ids (kJobDraw) leaves to the host, which evaluates the score of
// kernels/sample.h for them; nearly always there is one.
inline constexpr int32_t kDrawCandidates = 32;
// Most ids of a slice.
inline constexpr int64_t kMaxSampleValues = int64_t{1} << 20;

// Relative distance of a job's total from that of kernels/sample.h over n ids. A weight of either
// is off by 3 roundings of x and a unit in the last place of the exponential: below
// (3 |x| + 2) 2^-53 of it, and over a row the mean of |x| under the weights is at most ln n; adding
// is off by at most n roundings, on the device by fewer. Twice the sum of all that.
inline double TotalError(int64_t ids) {
  return static_cast<double>(ids + 256) * 0x1.0p-52;
}

enum SampleJobFlags : uint32_t {
  kJobTotal = 1,     // the total of the weights at the job's temperature
  kJobLogTotal = 2,  // the same at temperature 1
  kJobDraw = 4,      // the ids that may win the draw over all ids (no filter)
  kJobRaw = 8,       // the unedited logits of the candidates
};

// One reading of a row. A job with kJobDraw gives the ids that may win; one with candidates > 0
// gives that many in order; never both.
struct SampleJob {
  const float* logits = nullptr;  // [values]
  double temperature = 1;
  double inverse = 1;  // 1 / temperature
  uint64_t seed = 0;
  uint32_t index = 0;
  uint32_t position = 0;
  int64_t mask = -1;       // where the row's bitmap begins in SampleArgs::masks; -1: all ids
  int32_t mask_shift = 0;  // id i of the slice is bit i + mask_shift of the bitmap
  uint32_t flags = 0;      // SampleJobFlags
  int32_t candidates = 0;  // at most kMaxCandidates
  int32_t target = -1;     // id of the slice whose logit is wanted
  int32_t first_edit = 0;  // with kJobRaw: the row's part of SampleArgs::edits, ids ascending
  int32_t edit_count = 0;
};

enum SampleAnswerFlags : uint32_t {
  kAnswerInvalid = 1,  // a logit is NaN or plus infinity, allowed or not
  kAnswerAll = 2,      // the candidates are all ids of the slice that are finite and allowed
  kAnswerMissed = 4,   // kJobDraw: the candidates may lack the winner (once in 10^8 draws)
};

struct SampleAnswer {
  double total = 0;      // of SoftmaxWeight((l - largest) * inverse)
  double log_total = 0;  // of SoftmaxWeight(l - largest)
  float largest = 0;     // minus infinity if no id is finite and allowed
  int32_t id = -1;       // its lowest id, counted over the whole vocabulary; -1: none
  float target_logit = 0;
  int32_t candidate_count = 0;
  uint32_t flags = 0;  // SampleAnswerFlags
  uint32_t unused = 0;
};

// A logit to be changed, and how (steps 1 to 5 of kernels/sample.h).
enum SampleEditFlags : uint32_t { kEditBias = 1, kEditSeen = 2, kEditForbid = 4 };
struct SampleEdit {
  int32_t id = 0;  // of the slice
  float bias = 0;
  int32_t new_count = 0;
  uint32_t flags = 0;
};
struct SampleEditRow {
  float* logits = nullptr;
  int32_t first_edit = 0;
  int32_t edit_count = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t unused = 0;
};

}  // namespace pergola
