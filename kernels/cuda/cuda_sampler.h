// kernels/device_sampler.h on a CUDA device: RowSampler, MergeTask, and the device's guesses.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu_stream.h"
#include "kernels/cuda/row_sampler.h"
#include "kernels/device_sampler.h"
#include "kernels/stream.h"

namespace pergola {

class CudaSampler final : public DeviceSampler {
 public:
  // `threads`: of the host, that merge.
  static DeviceSamplerBytes Bytes(const DeviceSamplerShape& shape, int threads);
  // `stream` is that of `context`; it outlives the sampler. RowSampler::Create's errors and the
  // stream's.
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Create(const DeviceSamplerShape& shape,
                                                               const CudaContext& context,
                                                               Stream& stream);

  absl::Status Enqueue(absl::Span<const SampleTask> tasks,
                       absl::Span<const int32_t> entries) override;
  bool guesses() const override { return guesses_; }
  const int32_t* device_tokens() const override {
    return reinterpret_cast<const int32_t*>(tokens_.data());
  }
  absl::Span<const int32_t> tokens() const override {
    return {reinterpret_cast<const int32_t*>(host_tokens_.data()),
            static_cast<size_t>(shape_.entries)};
  }
  absl::Span<const uint8_t> answers() const override;
  void Merge(absl::Span<const uint8_t* const> ranks, absl::Span<SampleTask> tasks,
             std::vector<int32_t>* left) override;

 private:
  CudaSampler(const DeviceSamplerShape& shape, const CudaContext& context, Stream& stream);
  // Fills the list of what is to be guessed; its length.
  int64_t ListChoices(absl::Span<const SampleTask> tasks, absl::Span<const int32_t> entries);
  // Enqueue the guesses for the list, and the copy of every answer that this rank is to have.
  absl::Status Guess(int64_t choices);
  void Choose(int64_t choices);
  absl::Status CopyAnswers();

  const DeviceSamplerShape shape_;
  const CudaContext context_;
  Stream& stream_;
  std::vector<MergeSpace> spaces_;  // [threads of the host]
  std::vector<uint8_t> merged_;     // [tasks] whether the answers sufficed
  DeviceBuffer rows_memory_;        // of rows_
  DeviceBuffer host_rows_;          // of rows_, pinned
  DeviceBuffer choices_;            // [tasks] ChooseTask
  DeviceBuffer host_choices_;       // pinned
  DeviceBuffer gathered_;           // [ranks] answers; with a group
  DeviceBuffer host_gathered_;      // pinned
  DeviceBuffer tokens_;             // [entries] i32
  DeviceBuffer host_tokens_;        // pinned
  std::unique_ptr<RowSampler> rows_;
  bool guesses_ = false;
};

}  // namespace pergola
