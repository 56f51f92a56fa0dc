// The decode step of a stage as recorded launches: a step of few rows is a few hundred small
// kernels, whose launching costs the host more than their running costs the device. A recording is
// made for a shape that comes a second time, so that the first token waits for none.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/stream.h"
#include "worker/comm/communicator.h"
#include "worker/model/decoder.h"

namespace pergola {

class StepGraphs {
 public:
  // The driver keeps recordings in device memory of its own, outside the plan; once they have taken
  // this much, further shapes run unrecorded. --gpu-memory-fraction leaves room for it.
  static constexpr int64_t kMostRecordedBytes = int64_t{128} << 20;

  // `decoder` must not wait for the host during Forward. `ranks`: those that sum together, null if
  // there is but one; they all record a shape or none does, for what one has recorded does not meet
  // what another has not (NCCL asks for it), and they differ in the memory they have left. All are
  // borrowed.
  StepGraphs(Stream& stream, Decoder& decoder, StageCommunicator* ranks)
      : stream_(stream), decoder_(decoder), ranks_(ranks) {}

  // Rows that a decode step of `rows` rows is padded to, at most `step_rows`: few sizes, so that
  // few recordings serve all.
  static int64_t PaddedRows(int64_t rows, int64_t step_rows);
  // A bound on the context that as few recordings share, at most `context_length`.
  static int64_t PaddedContext(int64_t context, int64_t context_length);

  // As Decoder::Forward, of a padded decode step: pointers must be the same at every call. Every
  // rank makes the same calls.
  absl::Status Forward(const StepRows& rows, const int32_t* ids, float* hidden);

  int64_t recordings() const;

 private:
  // Null if it does not fit on some rank; nothing has run then.
  absl::StatusOr<std::unique_ptr<Recording>> Record(const StepRows& rows, const int32_t* ids,
                                                    float* hidden);
  // Whether all ranks say yes.
  absl::StatusOr<bool> AllAgree(bool mine);

  using Shape = std::pair<int64_t, int64_t>;  // rows, longest context

  Stream& stream_;
  Decoder& decoder_;
  StageCommunicator* const ranks_;
  bool full_ = false;  // some rank's device has no memory for more
  absl::flat_hash_map<Shape, std::unique_ptr<Recording>> recorded_;  // null: seen once
};

}  // namespace pergola
