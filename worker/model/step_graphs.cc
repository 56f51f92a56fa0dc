#include "worker/model/step_graphs.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/status.h"

namespace pergola {
namespace {

// Below it contexts share a recording: a part of a row's keys is at least as long.
constexpr int64_t kSmallestContext = 512;
// Padding wastes at most a seventh of a step beyond it.
constexpr int64_t kLargestPower = 8;
constexpr int64_t kRowStep = 8;

}  // namespace

int64_t StepGraphs::PaddedRows(int64_t rows, int64_t step_rows) {
  int64_t padded = 1;
  while (padded < rows && padded < kLargestPower) padded *= 2;
  if (padded < rows) padded = (rows + kRowStep - 1) / kRowStep * kRowStep;
  return std::max(rows, std::min(padded, step_rows));
}

int64_t StepGraphs::PaddedContext(int64_t context, int64_t context_length) {
  int64_t padded = kSmallestContext;
  while (padded < context) padded *= 2;
  return std::max(context, std::min(padded, context_length));
}

int64_t StepGraphs::recordings() const {
  return std::count_if(recorded_.begin(), recorded_.end(),
                       [](const auto& entry) { return entry.second != nullptr; });
}

absl::StatusOr<bool> StepGraphs::AllAgree(bool mine) {
  if (ranks_ == nullptr) return mine;
  const uint8_t own = mine ? 1 : 0;
  std::vector<uint8_t> all(static_cast<size_t>(ranks_->size()));
  RETURN_IF_ERROR(ranks_->AllGather(&own, sizeof(own), all.data()));
  return std::count(all.begin(), all.end(), 0) == 0;
}

absl::StatusOr<std::unique_ptr<Recording>> StepGraphs::Record(const StepRows& rows,
                                                              const int32_t* ids, float* hidden) {
  ASSIGN_OR_RETURN(const bool room, AllAgree(stream_.RecordedBytes() < kMostRecordedBytes));
  if (!room) return nullptr;
  stream_.BeginRecording();
  const absl::Status forward = decoder_.Forward(rows, ids, hidden);
  auto recording = stream_.EndRecording();
  RETURN_IF_ERROR(forward);
  if (!recording.ok() && !absl::IsResourceExhausted(recording.status())) return recording.status();
  ASSIGN_OR_RETURN(const bool fits, AllAgree(recording.ok()));
  if (fits) return recording;
  LOG_WARN("no more steps are recorded: {}", recording.ok()
                                                 ? "another rank's device has no memory for it"
                                                 : std::string(recording.status().message()));
  return nullptr;
}

absl::Status StepGraphs::Forward(const StepRows& rows, const int32_t* ids, float* hidden) {
  const auto [entry, first] =
      recorded_.try_emplace(Shape(rows.count, rows.attention.longest_context));
  if (first) return decoder_.Forward(rows, ids, hidden);
  if (entry->second == nullptr) {
    if (!full_) {
      ASSIGN_OR_RETURN(entry->second, Record(rows, ids, hidden));
      full_ = entry->second == nullptr;
    }
    if (full_) return decoder_.Forward(rows, ids, hidden);
  }
  stream_.Replay(*entry->second);
  return absl::OkStatus();
}

}  // namespace pergola
