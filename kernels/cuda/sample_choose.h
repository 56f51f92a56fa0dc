// The device's guess at the token that the host will make of a row's answers
// (kernels/device_sampler.h): for the next step's embedding, before the host has seen them.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"
#include "kernels/cuda/sample_job.h"

namespace pergola {

// A row with a token to be guessed. Filters as in kernels/sample.h; typical_p is not among them.
struct ChooseTask {
  int32_t job = -1;    // that answers the draw; -1: the host draws
  int32_t entry = 0;   // where the guess goes
  int32_t top_k = 0;   // 0: no limit
  int32_t greedy = 0;  // temperature 0
  float top_p = 1;
  float min_p = 0;
};

// All pointers are to device memory.
struct ChooseArgs {
  // Most ranks: what all of them say of a draw over all ids is as long as one's longest list.
  static constexpr int64_t kMostRanks = kMaxCandidates / kDrawCandidates;

  const ChooseTask* tasks = nullptr;  // [count]
  int64_t count = 0;
  const SampleJob* jobs = nullptr;
  // Of each rank of the stage, vocabulary ascending, `rank_bytes` apart: SampleAnswer by job, and
  // from candidates_offset on [jobs, stride] ValueAndId (AnswerLayout, sample_merge.h).
  const uint8_t* answers = nullptr;
  int64_t ranks = 1;
  int64_t rank_bytes = 0;
  int64_t candidates_offset = 0;
  int64_t stride = 0;
  int32_t* tokens = nullptr;  // [entries]
};
// tokens[task.entry] = the token; 0 where the row has none, or none that the device can tell.
void ChooseTokensCuda(const CudaContext& context, const ChooseArgs& args);

}  // namespace pergola
