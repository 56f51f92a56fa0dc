// What the choice of tokens (kernels/sample.h) needs of rows of logits that lie on a CUDA device,
// this rank's slice of the vocabulary only: the largest logit, softmax totals, the ids that can win
// a draw, and the best ids in order. kernels/cuda/row_sampler.h makes jobs out of tasks, and
// kernels/cuda/sample_merge.h makes tokens out of the ranks' answers.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"
#include "kernels/cuda/sample_job.h"

namespace pergola {

// All pointers are to device memory.
struct SampleArgs {
  const SampleJob* jobs = nullptr;  // [job_count]
  int64_t job_count = 0;
  bool lists = false;    // some job has candidates or kJobDraw
  int64_t values = 0;    // of the slice; at most kMaxSampleValues
  int32_t first_id = 0;  // of the slice
  const uint8_t* masks = nullptr;
  const SampleEdit* edits = nullptr;
  const float* unedited = nullptr;   // as EditLogitsCuda left it
  SampleAnswer* answers = nullptr;   // [job_count]
  ValueAndId* candidates = nullptr;  // [job_count, stride]
  float* candidates_raw = nullptr;   // [job_count, stride]; nullptr if no job has kJobRaw
  int64_t stride = 0;                // at least any job's candidates, and kDrawCandidates
};
// Answers all jobs. Takes SampleScratchBytes(job_count, values) of the workspace.
void SampleJobsCuda(const CudaContext& context, const SampleArgs& args);
int64_t SampleScratchBytes(int64_t job_count, int64_t values);

struct EditArgs {
  const SampleEditRow* rows = nullptr;  // [row_count]
  int64_t row_count = 0;
  const SampleEdit* edits = nullptr;
  float* unedited = nullptr;  // one for each edit
};
// Edits the rows in place; the logits as they were go to `unedited`. A logit that is NaN or plus
// infinity becomes NaN, so that the row stays invalid.
void EditLogitsCuda(const CudaContext& context, const EditArgs& args);
// Puts back what EditLogitsCuda changed.
void RestoreLogitsCuda(const CudaContext& context, const EditArgs& args);

}  // namespace pergola
