// Scheduler: what the answer to a plan means.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "coordinator/engine/scheduler.h"

namespace pergola {
namespace {

// The most probable ids that come with a log-probability, at most.
constexpr int kMostTops = 20;

bool ShapeOk(const google::protobuf::RepeatedPtrField<v1::Logprobs>& logprobs) {
  return std::all_of(logprobs.begin(), logprobs.end(), [](const v1::Logprobs& one) {
    return one.top_ids_size() <= kMostTops && one.top_ids_size() == one.top_logprobs_size();
  });
}

}  // namespace

absl::Status Scheduler::CheckEntry(const v1::EntryResult& answer,
                                   const PlannedEntry& planned) const {
  const bool ok = answer.status() == v1::ENTRY_STATUS_OK;
  if (!ok && answer.status() != v1::ENTRY_STATUS_NAN) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown status ", static_cast<int>(answer.status())));
  }
  const int ids = ok && planned.samples ? 1 : 0;
  if (answer.ids_size() != ids) {
    return absl::InvalidArgumentError(absl::StrCat(answer.ids_size(), " ids instead of ", ids));
  }
  if (ids == 1 &&
      (answer.ids(0) < 0 || static_cast<uint32_t>(answer.ids(0)) >= limits_.vocabulary_size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("id ", answer.ids(0), ", the vocabulary ends at ", limits_.vocabulary_size));
  }
  if (!ok) return absl::OkStatus();
  const Sequence* sequence = Current(planned);
  if (sequence == nullptr) return absl::OkStatus();  // it is dropped unread
  const int logprobs = sequence->request.sampling.has_logprobs() ? ids : 0;
  if (answer.logprobs_size() != logprobs) {
    return absl::InvalidArgumentError(
        absl::StrCat(answer.logprobs_size(), " log-probabilities instead of ", logprobs));
  }
  if (static_cast<uint32_t>(answer.target_logprobs_size()) != planned.targets) {
    return absl::InvalidArgumentError(absl::StrCat(
        answer.target_logprobs_size(), " target log-probabilities instead of ", planned.targets));
  }
  if (!ShapeOk(answer.logprobs()) || !ShapeOk(answer.target_logprobs())) {
    return absl::InvalidArgumentError(
        absl::StrCat("log-probabilities with more than ", kMostTops,
                     " most probable ids, or not as many values as ids"));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::CheckShape(const v1::StepResult& result) const {
  if (in_flight() == 0 || result.plan_id() != oldest_plan_) {
    return absl::InvalidArgumentError(absl::StrCat("result of plan ", result.plan_id(), ", but ",
                                                   in_flight(), " plans from ", oldest_plan_,
                                                   " on are unanswered"));
  }
  const std::vector<PlannedEntry>& entries = ring_[oldest_plan_ % depth()];
  if (static_cast<size_t>(result.entries_size()) != entries.size()) {
    return absl::InvalidArgumentError(absl::StrCat("result of plan ", result.plan_id(), " has ",
                                                   result.entries_size(), " entries, the plan has ",
                                                   entries.size()));
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    const absl::Status entry = CheckEntry(result.entries(static_cast<int>(i)), entries[i]);
    if (entry.ok()) continue;
    return absl::InvalidArgumentError(absl::StrCat("result of plan ", result.plan_id(), " entry ",
                                                   i, " has ", std::string(entry.message())));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Apply(const v1::StepResult& result, std::vector<Outcome>* outcomes) {
  outcomes->clear();
  absl::Status shape = CheckShape(result);
  if (!shape.ok()) return shape;
  const std::vector<PlannedEntry>& entries = EntriesOf(oldest_plan_);
  uint32_t rows = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    const PlannedEntry& planned = entries[i];
    const v1::EntryResult& answer = result.entries(static_cast<int>(i));
    rows += planned.rows;
    Sequence* sequence = Current(planned);
    if (sequence == nullptr) {
      overrun_tokens_ += static_cast<uint64_t>(answer.ids_size());
      continue;
    }
    sequence->computed += planned.rows;
    PERGOLA_CHECK(sequence->computed <= sequence->planned);
    if (planned.samples) --sequence->pending;
    if (answer.status() != v1::ENTRY_STATUS_OK) {
      outcomes->push_back({sequence, answer.status(), false, &answer, 0});
      continue;
    }
    uint32_t first_target = planned.targets;
    if (planned.targets > 0 && planned.first_position + planned.targets > sequence->scored) {
      first_target = sequence->scored - planned.first_position;
      sequence->scored = planned.first_position + planned.targets;
    }
    if (planned.samples) {
      sequence->known.push_back(answer.ids(0));
      PublishBlocks(*sequence);
    }
    if (planned.samples || first_target < planned.targets) {
      outcomes->push_back({sequence, v1::ENTRY_STATUS_OK, planned.samples, &answer, first_target});
    }
  }
  ++oldest_plan_;
  int64_t time_us = 0;
  for (const v1::StageTime& stage : result.stages()) time_us += stage.compute_us();
  cost_.Add(rows, time_us);
  return absl::OkStatus();
}

}  // namespace pergola
