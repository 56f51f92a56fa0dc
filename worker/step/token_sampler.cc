#include "worker/step/token_sampler.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "model/memory_plan.h"

namespace pergola {
namespace {

constexpr int64_t kWord = sizeof(float);

template <typename T>
int64_t BytesOf(const std::vector<T>& values) {
  return static_cast<int64_t>(values.capacity() * sizeof(T));
}

void ToProto(const TokenLogprobs& from, v1::Logprobs* to) {
  to->set_logprob(from.logprob);
  to->mutable_top_ids()->Add(from.top_ids, from.top_ids + from.top_count);
  to->mutable_top_logprobs()->Add(from.top_logprobs, from.top_logprobs + from.top_count);
}

}  // namespace

int64_t SamplerShape::widest_slice() const {
  int64_t widest = 0;
  for (const Range& slice : slices) widest = std::max(widest, slice.size());
  return widest;
}

TokenSampler::TokenSampler(const SamplerShape& shape, Stream& stream,
                           StageCommunicator* communicator, const SlotTable& slots,
                           Decoder& decoder, std::unique_ptr<DeviceSampler> device)
    : shape_(shape),
      widest_(shape.widest_slice()),
      stream_(stream),
      host_(stream.host()),
      communicator_(communicator),
      slots_(slots),
      decoder_(decoder),
      device_(std::move(device)),
      turn_done_(stream.MakeEvent()),
      logits_(shape.tensor_parallel * shape.logit_rows * widest_ * kWord),
      device_logits_(stream, device_ == nullptr
                                 ? 0
                                 : shape.logit_rows * shape.slices[shape.tp_rank].size() * kWord),
      whole_(shape.tensor_parallel > 1 ? shape.own_rows() * shape.vocabulary * kWord : 0),
      gathered_(shape.tensor_parallel > 1 && device_ != nullptr
                    ? shape.tensor_parallel * shape.answer_bytes
                    : 0),
      rows_(stream, shape.logit_rows * kWord, Place::kPinned),
      best_(shape.tensor_parallel * shape.logit_rows),
      own_tasks_(shape.own_rows()),
      exchanged_(shape.tensor_parallel * shape.own_rows()),
      logprobs_(shape.tensor_parallel * shape.own_rows()),
      choices_(shape.logit_rows),
      tasks_(device_ == nullptr ? 0 : shape.logit_rows),
      entries_(device_ == nullptr ? 0 : shape.logit_rows) {
  picked_.reserve(shape.logit_rows);
  wanted_.reserve(shape.step_tokens);
}

int64_t TokenSampler::bytes() const {
  // The plan (model/memory_plan.h) knows these sizes by number.
  static_assert(sizeof(Wanted) == kWantedRowBytes);
  static_assert(sizeof(SampleTask) == kSampleTaskBytes);
  static_assert(sizeof(Choice) + sizeof(RowLogprobs) == kSampleAnswerBytes);
  static_assert(sizeof(Choice) + 2 * sizeof(int32_t) == kTurnRowBytes);
  static_assert(sizeof(ValueAndId) == kBestBytes);
  return logits_.size() + whole_.size() + gathered_.size() + rows_.size() + BytesOf(best_) +
         BytesOf(own_tasks_) + BytesOf(exchanged_) + BytesOf(logprobs_) + BytesOf(choices_) +
         BytesOf(picked_) + BytesOf(tasks_) + BytesOf(entries_) + BytesOf(wanted_);
}

absl::Span<const float> TokenSampler::Kept(int64_t row) const {
  PERGOLA_CHECK(row >= 0 && row < static_cast<int64_t>(kept_.size()));
  return kept_[row];
}

// The rows that a token is drawn for, and those whose next id is scored: both ascend, and a row may
// be both.
void TokenSampler::ListEntry(const v1::Entry& entry, int32_t number, int64_t first_row,
                             std::vector<Wanted>* wanted) {
  const auto targets = static_cast<uint32_t>(entry.targets_size());
  int next_draw = 0;
  uint32_t next_target = 0;
  while (next_draw < entry.logits_at_size() || next_target < targets) {
    const bool draws = next_draw < entry.logits_at_size();
    const uint32_t draw_at = draws ? entry.logits_at(next_draw) : 0;
    const bool scores = next_target < targets && (!draws || next_target <= draw_at);
    const uint32_t offset = scores ? next_target : draw_at;
    Wanted row;
    row.entry = number;
    row.slot = entry.slot();
    row.row = first_row + offset;
    row.position = entry.first_position() + offset + 1;
    row.mask = entry.has_mask() ? &entry.mask() : nullptr;
    row.draw = draws && draw_at == offset;
    if (row.draw) ++next_draw;
    row.last_draw = row.draw && next_draw == entry.logits_at_size();
    if (scores) {
      row.target = entry.targets(static_cast<int>(next_target++));
      row.target_top = static_cast<int32_t>(entry.target_logprobs());
    }
    wanted->push_back(row);
  }
}

void TokenSampler::ListWanted(const v1::StepPlan& plan) {
  wanted_.clear();
  int64_t first_row = 0;
  for (int e = 0; e < plan.entries_size(); ++e) {
    ListEntry(plan.entries(e), e, first_row, &wanted_);
    first_row += EntryRows(plan.entries(e));
  }
}

absl::Status TokenSampler::Begin(const v1::StepPlan& plan, const float* hidden) {
  ListWanted(plan);
  results_.assign(plan.entries_size(), v1::EntryResult());
  kept_.clear();
  plan_id_ = plan.plan_id();
  hidden_ = hidden;
  guesses_ = device_ != nullptr;
  begin_ = 0;
  return StartTurn();
}

absl::Status TokenSampler::Settle() {
  while (begin_ + count_ < static_cast<int64_t>(wanted_.size())) {
    RETURN_IF_ERROR(FinishTurn());
    RETURN_IF_ERROR(StartTurn());
  }
  return absl::OkStatus();
}

absl::Status TokenSampler::Finish(std::vector<v1::EntryResult>* results) {
  RETURN_IF_ERROR(Settle());
  RETURN_IF_ERROR(FinishTurn());
  for (v1::EntryResult& result : results_) {
    if (result.status() != v1::ENTRY_STATUS_NAN) continue;
    result.Clear();
    result.set_status(v1::ENTRY_STATUS_NAN);
  }
  *results = std::move(results_);
  return absl::OkStatus();
}

absl::Status TokenSampler::StartTurn() {
  count_ = std::min(shape_.logit_rows, static_cast<int64_t>(wanted_.size()) - begin_);
  turn_has_logprobs_ = false;
  for (int64_t i = 0; i < count_; ++i) {
    const Wanted& wanted = wanted_[begin_ + i];
    rows()[i] = static_cast<int32_t>(wanted.row);
    turn_has_logprobs_ =
        turn_has_logprobs_ || wanted.target >= 0 || slots_.sampling(wanted.slot).logprobs >= 0;
  }
  if (count_ > 0) {
    decoder_.Logits(hidden_, absl::MakeConstSpan(rows(), count_),
                    device_ == nullptr ? Slice(shape_.tp_rank, count_) : device_logits());
    if (device_ != nullptr) RETURN_IF_ERROR(EnqueueChoice());
  }
  stream_.Record(*turn_done_);
  return absl::OkStatus();
}

absl::StatusOr<bool> TokenSampler::Ready() {
  bool reached = false;
  if (links_ == nullptr) {
    reached = stream_.Reached(*turn_done_);
  } else {
    ASSIGN_OR_RETURN(reached, links_->Reached(stream_, *turn_done_));
  }
  // A device that has failed has reached everything.
  if (reached) RETURN_IF_ERROR(stream_.Wait(*turn_done_));
  return reached;
}

absl::Status TokenSampler::WaitForTurn() {
  if (links_ == nullptr) return stream_.Wait(*turn_done_);
  return links_->Wait(stream_, *turn_done_, "GPU work of plan", plan_id_, ahead_);
}

absl::Status TokenSampler::FinishTurn() {
  RETURN_IF_ERROR(WaitForTurn());
  if (count_ > 0) RETURN_IF_ERROR(device_ == nullptr ? ChooseOnHost() : MergeAnswers());
  Answer();
  begin_ += count_;
  count_ = 0;
  return absl::OkStatus();
}

TokenSampler::Outcome TokenSampler::OutcomeOf(int64_t i) const {
  if (device_ != nullptr) {
    const SampleTask& task = tasks_[i];
    return {{task.id, task.valid ? 1 : 0}, &task.id_logprobs, &task.target_logprobs};
  }
  const RowLogprobs& logprobs = logprobs_[PlaceOf(i)];
  return {choices_[i], &logprobs.of_id, &logprobs.of_target};
}

void TokenSampler::Answer() {
  for (int64_t i = 0; i < count_; ++i) {
    const Wanted& wanted = wanted_[begin_ + i];
    const Outcome outcome = OutcomeOf(i);
    v1::EntryResult& result = results_[wanted.entry];
    if (outcome.choice.valid == 0) {
      result.set_status(v1::ENTRY_STATUS_NAN);
      continue;
    }
    if (wanted.draw) {
      result.add_ids(outcome.choice.id);
      if (slots_.sampling(wanted.slot).logprobs >= 0) {
        ToProto(*outcome.of_id, result.add_logprobs());
      }
    }
    if (wanted.target >= 0) ToProto(*outcome.of_target, result.add_target_logprobs());
  }
}

void TokenSampler::FillTask(const Wanted& wanted, SampleTask* task) const {
  const int logprobs = slots_.sampling(wanted.slot).logprobs;
  *task = SampleTask();
  task->row = slots_.Row(wanted.slot, wanted.position);
  task->draw = wanted.draw;
  task->logprobs = logprobs >= 0;
  task->top = std::max(0, logprobs);
  task->target = wanted.target;
  task->target_top = wanted.target_top;
  if (wanted.mask == nullptr) return;
  if (wanted.mask->bitmap().empty()) {
    task->row.mask_ids = wanted.mask->ids().data();
    task->row.mask_id_count = wanted.mask->ids_size();
  } else {
    task->row.mask = reinterpret_cast<const uint8_t*>(wanted.mask->bitmap().data());
  }
}

}  // namespace pergola
