// A GPU's way of choosing tokens: the logits stay, the answers come (kernels/device_sampler.h).
#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "worker/step/token_sampler.h"

namespace pergola {

absl::Status TokenSampler::EnqueueChoice() {
  const int64_t values = shape_.slices[shape_.tp_rank].size();
  for (int64_t i = 0; i < count_; ++i) {
    const Wanted& wanted = wanted_[begin_ + i];
    FillTask(wanted, &tasks_[i]);
    tasks_[i].row.logits = device_logits() + i * values;
    // What later plans call the entry's token is the last that it draws.
    entries_[i] = wanted.last_draw ? wanted.entry : -1;
  }
  RETURN_IF_ERROR(device_->Enqueue(absl::MakeConstSpan(tasks_.data(), count_),
                                   absl::MakeConstSpan(entries_.data(), count_)));
  guesses_ = guesses_ && device_->guesses();
  return absl::OkStatus();
}

absl::Status TokenSampler::MergeAnswers() {
  const absl::Span<const uint8_t> answers = device_->answers();
  const uint8_t* all = answers.data();
  auto bytes = static_cast<int64_t>(answers.size());  // of one rank
  if (shape_.tensor_parallel > 1 && shape_.answer_bytes == 0) {
    bytes /= shape_.tensor_parallel;
  } else if (shape_.tensor_parallel > 1) {
    PERGOLA_CHECK(bytes <= shape_.answer_bytes);
    RETURN_IF_ERROR(Prefixed(communicator_->AllGather(all, bytes, gathered_.data()),
                             "all-gather of the sampling answers"));
    all = gathered_.data();
  }
  std::vector<const uint8_t*> ranks;
  for (int rank = 0; rank < shape_.tensor_parallel; ++rank) ranks.push_back(all + rank * bytes);
  if (keep_) {
    PickAll();
    RETURN_IF_ERROR(GatherPicked());
    KeepPicked();
  }
  picked_.clear();
  device_->Merge(ranks, absl::MakeSpan(tasks_.data(), count_), &picked_);
  return picked_.empty() ? absl::OkStatus() : ChooseLeft();
}

// The rows that the answers did not suffice for.
absl::Status TokenSampler::ChooseLeft() {
  RETURN_IF_ERROR(GatherPicked());
  RETURN_IF_ERROR(DrawPicked());
  for (int64_t i = 0; i < picked(); ++i) {
    SampleTask& task = tasks_[picked_[i]];
    task.id = choices_[i].id;
    task.valid = choices_[i].valid != 0;
    if (!turn_has_logprobs_) continue;
    task.id_logprobs = logprobs_[PlaceOf(i)].of_id;
    task.target_logprobs = logprobs_[PlaceOf(i)].of_target;
  }
  return absl::OkStatus();
}

}  // namespace pergola
