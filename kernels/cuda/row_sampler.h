// Tasks of kernels/sample.h on logits that lie on a CUDA device, cut over the ranks of a stage by
// vocabulary. Each rank asks its slice; the answers, some kilobytes a row, are exchanged; each rank
// merges them (kernels/cuda/sample_merge.h). A step's calls, all from the rank's main thread:
//
//   sampler->Prepare(tasks);                   // host work, while the device computes the logits
//   RETURN_IF_ERROR(sampler->Enqueue());       // after the logits, on the context's stream
//   TP 1:   RETURN_IF_ERROR(sampler->CopyAnswers()), and wait for the stream
//   TP > 1: all-gather layout().bytes() bytes at device_answers(), copy to the host, and wait
//   for (i ...) if (!MergeTask(RankAnswers{sampler->layout(), ...}, sampler->jobs(i), ...))
//     // rare: copy the row's slices to the host, and SampleTasks (kernels/sample.h)
//
// The logits are the same before and after: edits are taken back.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_edits.h"
#include "kernels/cuda/sample_merge.h"
#include "kernels/device_sampler.h"
#include "kernels/sample.h"
#include "model/layout.h"

namespace pergola {

// `workspace`: the part of CudaContext::workspace that Enqueue uses.
using RowSamplerBytes = DeviceSamplerBytes;

// Of the sizes that Bytes says, aligned to kDevicePieceAlignment; borrowed.
struct RowSamplerMemory {
  uint8_t* device = nullptr;
  uint8_t* pinned = nullptr;
};

class RowSampler {
 public:
  static RowSamplerBytes Bytes(const RowSamplerShape& shape);
  // INVALID_ARGUMENT if a slice is too wide. The context is copied.
  static absl::StatusOr<std::unique_ptr<RowSampler>> Create(const RowSamplerShape& shape,
                                                            const CudaContext& context,
                                                            const RowSamplerMemory& memory);
  ~RowSampler();

  // What Enqueue will do: the jobs, and the lists of edits and masks in pinned memory. The tasks
  // are as for SampleTasks, but row.logits is the row's slice in device memory, which is edited for
  // a while: no two tasks have the same row. Nothing else of them is looked at later. The answers
  // to the last call have arrived.
  void Prepare(absl::Span<const SampleTask> tasks);
  // Enqueues it on the context's stream. UNKNOWN with CUDA's word if a copy is refused.
  absl::Status Enqueue();
  // Enqueues the copy of the answers to host_answers().
  absl::Status CopyAnswers();

  // How the answers to the prepared tasks lie in memory: the same on every rank.
  const AnswerLayout& layout() const { return layout_; }
  const TaskJobs& jobs(int64_t task) const { return task_jobs_[task]; }
  const SampleJob* device_jobs() const { return device_.at<SampleJob>(0); }
  const uint8_t* device_answers() const;
  const uint8_t* host_answers() const;
  // Most bytes that the answers of a call take.
  static int64_t MostAnswerBytes(const RowSamplerShape& shape);

 private:
  // Where something lies, in parts.
  struct Region {
    uint8_t* data;
    template <typename T>
    T* at(int64_t offset) const {
      return reinterpret_cast<T*>(data + offset);
    }
  };
  // What goes to the device, at the same offsets in pinned and in device memory; then the unedited
  // logits, on the device only.
  struct Offsets {
    explicit Offsets(const RowSamplerShape& shape);
    int64_t edit_rows, edits, masks, unedited;
    int64_t mask_bytes;  // of a row
    int64_t end;
  };

  RowSampler(const RowSamplerShape& shape, const CudaContext& context,
             const RowSamplerMemory& memory);
  void AddDraw(const SampleTask& task, TaskJobs* jobs);
  void AddLogprobs(const SampleTask& task, SampleJob* to) const;
  void AddEdits(const SampleRow& row, SampleJob* to);
  void AddMask(const SampleRow& row, SampleJob* to);
  int32_t AddJob(const SampleTask& task);
  absl::Status Upload(int64_t offset, int64_t bytes);
  SampleJob* job(int32_t number) { return upload_.at<SampleJob>(0) + number; }
  SampleArgs ArgsOf(int64_t first, int64_t count) const;

  const RowSamplerShape shape_;
  const CudaContext context_;
  const Offsets offsets_;
  const Region upload_;  // pinned
  const Region device_;  // its copy
  const Region device_answers_;
  const Region host_answers_;  // pinned
  EditLister lister_;
  std::vector<TaskJobs> task_jobs_;  // [tasks]

  // Of the prepared call.
  AnswerLayout layout_;
  int64_t early_jobs_ = 0;  // come before the edits
  int64_t job_count_ = 0;
  int64_t edit_row_count_ = 0;
  int64_t edit_count_ = 0;
  int64_t edit_bound_ = 0;
  int64_t mask_count_ = 0;
  bool early_lists_ = false, late_lists_ = false;
};

}  // namespace pergola
