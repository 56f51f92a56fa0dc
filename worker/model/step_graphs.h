// The decode step of a stage as recorded launches: a step of few rows is a few hundred small
// kernels, whose launching costs the host more than their running costs the device. A recording is
// made for a shape that comes a second time, so that the first token waits for none.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "kernels/stream.h"
#include "worker/model/decoder.h"

namespace pergola {

class StepGraphs {
 public:
  // The driver keeps recordings in device memory of its own, outside the plan; once they have taken
  // this much, further shapes run unrecorded. --gpu-memory-fraction leaves room for it.
  static constexpr int64_t kMostRecordedBytes = int64_t{128} << 20;

  // Both are borrowed. `decoder` must not wait for the host during Forward. `alone`: no other rank
  // takes part in it; such a rank goes on unrecorded where the device has no memory for a
  // recording, while ranks that sum together must all record the same and report it as an error.
  StepGraphs(Stream& stream, Decoder& decoder, bool alone)
      : stream_(stream), decoder_(decoder), alone_(alone) {}

  // Rows that a decode step of `rows` rows is padded to, at most `step_rows`: few sizes, so that
  // few recordings serve all.
  static int64_t PaddedRows(int64_t rows, int64_t step_rows);
  // A bound on the context that as few recordings share, at most `context_length`.
  static int64_t PaddedContext(int64_t context, int64_t context_length);

  // As Decoder::Forward, of a padded decode step: pointers must be the same at every call.
  absl::Status Forward(const StepRows& rows, const int32_t* ids, float* hidden);

  int64_t recordings() const;

 private:
  using Shape = std::pair<int64_t, int64_t>;  // rows, longest context

  Stream& stream_;
  Decoder& decoder_;
  const bool alone_;
  bool full_ = false;  // the device has no memory for more
  absl::flat_hash_map<Shape, std::unique_ptr<Recording>> recorded_;  // null: seen once
};

}  // namespace pergola
