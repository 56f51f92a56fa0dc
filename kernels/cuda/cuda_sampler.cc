#include "kernels/cuda/cuda_sampler.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_handle.h"
#include "kernels/cuda/sample_choose.h"
#include "kernels/thread_pool.h"
#include "model/device_piece.h"

namespace pergola {
namespace {

// Whole pieces, between which an arena needs no padding.
int64_t Whole(int64_t bytes) {
  return bytes + DevicePadding(bytes);
}
int64_t ChoiceBytes(const DeviceSamplerShape& shape) {
  return Whole(shape.rows.tasks * static_cast<int64_t>(sizeof(ChooseTask)));
}
int64_t TokenBytes(const DeviceSamplerShape& shape) {
  return Whole(shape.entries * static_cast<int64_t>(sizeof(int32_t)));
}

int64_t GatheredBytes(const DeviceSamplerShape& shape) {
  if (!shape.gathers()) return 0;
  const auto ranks = static_cast<int64_t>(shape.slices.size());
  return Whole(ranks * RowSampler::MostAnswerBytes(shape.rows));
}

}  // namespace

DeviceSamplerBytes CudaSampler::Bytes(const DeviceSamplerShape& shape, int threads) {
  const int64_t own = ChoiceBytes(shape) + TokenBytes(shape) + GatheredBytes(shape);
  const auto ranks = static_cast<int>(shape.slices.size());
  DeviceSamplerBytes bytes = RowSampler::Bytes(shape.rows);
  bytes.device = Whole(bytes.device) + own;
  bytes.pinned = Whole(bytes.pinned) + own;
  bytes.host += threads * MergeSpace::Bytes(ranks) + shape.rows.tasks;
  return bytes;
}

absl::StatusOr<std::unique_ptr<DeviceSampler>> CudaSampler::Create(const DeviceSamplerShape& shape,
                                                                   const CudaContext& context,
                                                                   Stream& stream) {
  std::unique_ptr<CudaSampler> sampler(new CudaSampler(shape, context, stream));
  // Where memory was missing.
  RETURN_IF_ERROR(stream.Synchronize());
  ASSIGN_OR_RETURN(sampler->rows_,
                   RowSampler::Create(shape.rows, context,
                                      {sampler->rows_memory_.data(), sampler->host_rows_.data()}));
  return sampler;
}

CudaSampler::CudaSampler(const DeviceSamplerShape& shape, const CudaContext& context,
                         Stream& stream)
    : shape_(shape),
      context_(context),
      stream_(stream),
      spaces_(stream.host().threads(), MergeSpace(static_cast<int>(shape.slices.size()))),
      merged_(shape.rows.tasks),
      rows_memory_(stream, Whole(RowSampler::Bytes(shape.rows).device)),
      host_rows_(stream, Whole(RowSampler::Bytes(shape.rows).pinned), Place::kPinned),
      choices_(stream, ChoiceBytes(shape)),
      host_choices_(stream, ChoiceBytes(shape), Place::kPinned),
      gathered_(stream, GatheredBytes(shape)),
      host_gathered_(stream, GatheredBytes(shape), Place::kPinned),
      tokens_(stream, TokenBytes(shape)),
      host_tokens_(stream, TokenBytes(shape), Place::kPinned) {}

int64_t CudaSampler::ListChoices(absl::Span<const SampleTask> tasks,
                                 absl::Span<const int32_t> entries) {
  // Without a group each rank knows its part of a row alone.
  const auto ranks = static_cast<int64_t>(shape_.slices.size());
  guesses_ = ranks == 1 || (shape_.gathers() && ranks <= ChooseArgs::kMostRanks);
  auto* choices = reinterpret_cast<ChooseTask*>(host_choices_.data());
  int64_t count = 0;
  for (size_t i = 0; i < tasks.size(); ++i) {
    if (entries[i] < 0) continue;
    PERGOLA_CHECK(entries[i] < shape_.entries);
    const SampleRow& row = tasks[i].row;
    const TaskJobs& jobs = rows_->jobs(static_cast<int64_t>(i));
    const bool typical = row.temperature > 0 && row.typical_p > 0 && row.typical_p < 1;
    guesses_ = guesses_ && !typical && !jobs.host;
    ChooseTask choice;
    choice.job = jobs.host ? -1 : jobs.draw;
    choice.entry = entries[i];
    choice.greedy = row.temperature == 0 ? 1 : 0;
    if (row.top_k < shape_.rows.vocabulary) choice.top_k = static_cast<int32_t>(row.top_k);
    choice.top_p = row.top_p;
    choice.min_p = row.min_p;
    choices[count++] = choice;
  }
  return count;
}

absl::Status CudaSampler::Enqueue(absl::Span<const SampleTask> tasks,
                                  absl::Span<const int32_t> entries) {
  PERGOLA_CHECK(tasks.size() == entries.size());
  rows_->Prepare(tasks);
  absl::Status status;
  RunOnCuda(stream_, "choosing tokens",
            [&](const CudaContext& /*now*/) { status = rows_->Enqueue(); });
  RETURN_IF_ERROR(Prefixed(status, stream_.where()));
  const int64_t choices = ListChoices(tasks, entries);
  const int64_t bytes = rows_->layout().bytes();
  if (shape_.gathers() && bytes > 0) {
    RETURN_IF_ERROR(shape_.group->AllGather(rows_->device_answers(), bytes, gathered_.data()));
  }
  if (guesses_ && choices > 0) RETURN_IF_ERROR(Guess(choices));
  return CopyAnswers();
}

// The same on every rank of the group, but that one of them chooses: `choices` and guesses_ depend
// on what the tasks ask for, never on the slice.
absl::Status CudaSampler::Guess(int64_t choices) {
  if (!shape_.gathers() || shape_.group->rank() == 0) {
    RunOnCuda(stream_, "guessing tokens", [&](const CudaContext& /*now*/) { Choose(choices); });
  }
  if (shape_.gathers()) {
    RETURN_IF_ERROR(shape_.group->Broadcast(tokens_.data(), tokens_.size(), 0));
  }
  stream_.CopyToHost(host_tokens_.data(), tokens_.data(), tokens_.size());
  return absl::OkStatus();
}

void CudaSampler::Choose(int64_t choices) {
  ChooseArgs args;
  stream_.CopyToDevice(choices_.data(), host_choices_.data(),
                       choices * static_cast<int64_t>(sizeof(ChooseTask)));
  args.tasks = reinterpret_cast<const ChooseTask*>(choices_.data());
  args.count = choices;
  args.jobs = rows_->device_jobs();
  args.answers = shape_.gathers() ? gathered_.data() : rows_->device_answers();
  args.ranks = static_cast<int64_t>(shape_.slices.size());
  args.rank_bytes = rows_->layout().bytes();
  args.candidates_offset = rows_->layout().candidates_offset();
  args.stride = rows_->layout().stride;
  args.tokens = reinterpret_cast<int32_t*>(tokens_.data());
  ChooseTokensCuda(context_, args);
}

absl::Status CudaSampler::CopyAnswers() {
  if (!shape_.gathers()) return Prefixed(rows_->CopyAnswers(), stream_.where());
  stream_.CopyToHost(host_gathered_.data(), gathered_.data(),
                     static_cast<int64_t>(shape_.slices.size()) * rows_->layout().bytes());
  return absl::OkStatus();
}

absl::Span<const uint8_t> CudaSampler::answers() const {
  const auto bytes = static_cast<size_t>(rows_->layout().bytes());
  if (!shape_.gathers()) return {rows_->host_answers(), bytes};
  return {host_gathered_.data(), shape_.slices.size() * bytes};
}

void CudaSampler::Merge(absl::Span<const uint8_t* const> ranks, absl::Span<SampleTask> tasks,
                        std::vector<int32_t>* left) {
  const RankAnswers answers = {rows_->layout(), ranks, shape_.slices, shape_.rows.vocabulary};
  CpuStream& host = stream_.host();
  const auto count = static_cast<int64_t>(tasks.size());
  std::atomic<int64_t> next{0};
  const auto work = [&](int thread) {
    for (int64_t i = next++; i < count; i = next++) {
      merged_[i] =
          MergeTask(answers, rows_->jobs(i), host.target(), &spaces_[thread], &tasks[i]) ? 1 : 0;
    }
  };
  // A greedy row is merged faster than a thread is woken.
  if (rows_->layout().stride == 0 || count == 1) {
    work(0);
  } else {
    host.pool().Run(work);
  }
  for (int64_t i = 0; i < count; ++i) {
    if (merged_[i] == 0) left->push_back(static_cast<int32_t>(i));
  }
}

}  // namespace pergola
