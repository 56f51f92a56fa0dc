// The CPU's way of choosing tokens, and the way of rows that a GPU leaves to the host.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/status.h"
#include "kernels/thread_pool.h"
#include "worker/step/token_sampler.h"

namespace pergola {

float* TokenSampler::Slice(int rank, int64_t count) const {
  return reinterpret_cast<float*>(logits_.data()) + rank * count * widest_;
}

void TokenSampler::PickAll() {
  picked_.resize(count_);
  std::iota(picked_.begin(), picked_.end(), 0);
}

absl::Status TokenSampler::ChooseOnHost() {
  PickAll();
  if (shape_.tensor_parallel > 1 && !keep_ && TurnIsPlain()) return ChooseGreedily();
  RETURN_IF_ERROR(GatherPicked());
  if (keep_) KeepPicked();
  return DrawPicked();
}

// Whether nothing but the largest logit of every row is wanted.
bool TokenSampler::TurnIsPlain() const {
  for (int64_t i = begin_; i < begin_ + count_; ++i) {
    const Wanted& wanted = wanted_[i];
    const SlotSampling& sampling = slots_.sampling(wanted.slot);
    const bool plain = wanted.draw && wanted.target < 0 && wanted.mask == nullptr &&
                       sampling.temperature == 0 && sampling.logprobs < 0 &&
                       !slots_.Row(wanted.slot, wanted.position).edits();
    if (!plain) return false;
  }
  return true;
}

// Every row is plain: each rank's best is enough.
absl::Status TokenSampler::ChooseGreedily() {
  const Range& slice = shape_.slices[shape_.tp_rank];
  const float* mine = Slice(shape_.tp_rank, count_);
  ValueAndId* best = &best_[shape_.tp_rank * count_];
  for (int64_t i = 0; i < count_; ++i) {
    best[i] =
        ArgMax(host_, mine + i * slice.size(), slice.size(), static_cast<int32_t>(slice.begin));
  }
  RETURN_IF_ERROR(
      Prefixed(communicator_->AllGather(best, count_ * static_cast<int64_t>(sizeof(ValueAndId)),
                                        best_.data()),
               "all-gather of the greedy choices"));
  for (int64_t i = 0; i < count_; ++i) {
    ValueAndId chosen = best_[i];
    for (int rank = 1; rank < shape_.tensor_parallel; ++rank) {
      const ValueAndId& other = best_[rank * count_ + i];
      // Slices ascend, so at equal values the id chosen first is the lowest.
      if (chosen.id < 0 || other.id < 0) {
        chosen.id = -1;
      } else if (other.value > chosen.value) {
        chosen = other;
      }
    }
    choices_[i] = {chosen.id, chosen.id >= 0 ? 1 : 0};
  }
  return absl::OkStatus();
}

absl::Status TokenSampler::GatherPicked() {
  const int64_t values = shape_.slices[shape_.tp_rank].size();
  float* mine = Slice(shape_.tp_rank, picked());
  // On the CPU all rows are picked, and lie there already.
  for (int64_t i = 0; device_ != nullptr && i < picked(); ++i) {
    stream_.CopyToHost(mine + i * values, device_logits() + picked_[i] * values,
                       values * static_cast<int64_t>(sizeof(float)));
  }
  RETURN_IF_ERROR(links_ == nullptr ? stream_.Synchronize()
                                    : links_->Synchronize(stream_, "GPU work of plan", plan_id_));
  if (shape_.tensor_parallel == 1) return absl::OkStatus();
  return Prefixed(
      communicator_->AllGather(mine, picked() * widest_ * static_cast<int64_t>(sizeof(float)),
                               logits_.data()),
      "all-gather of the logits");
}

void TokenSampler::KeepPicked() {
  if (shape_.tp_rank != 0) return;
  for (int64_t i = 0; i < picked(); ++i) {
    kept_.emplace_back(shape_.vocabulary);
    Assemble(i, kept_.back().data());
  }
}

absl::Status TokenSampler::DrawPicked() {
  RunOwnTasks();
  return ExchangeChoices();
}

// The picked row `row`, put together from the ranks' slices.
void TokenSampler::Assemble(int64_t row, float* whole) const {
  for (int rank = 0; rank < shape_.tensor_parallel; ++rank) {
    const Range& slice = shape_.slices[rank];
    std::memcpy(whole + slice.begin, Slice(rank, picked()) + row * slice.size(),
                slice.size() * sizeof(float));
  }
}

// Leaves this rank's part of exchanged_ and logprobs_ filled. Its k-th row is the picked row
// tp_rank + k * TP.
void TokenSampler::RunOwnTasks() {
  const int ranks = shape_.tensor_parallel;
  auto* whole = reinterpret_cast<float*>(whole_.data());
  int64_t own = 0;
  for (int64_t i = shape_.tp_rank; i < picked(); i += ranks, ++own) {
    FillTask(wanted_[begin_ + picked_[i]], &own_tasks_[own]);
    own_tasks_[own].row.logits =
        ranks == 1 ? Slice(0, picked()) + i * shape_.vocabulary : whole + own * shape_.vocabulary;
  }
  if (ranks > 1) {
    host_.pool().ParallelFor(own, 1, [&](int64_t from, int64_t to) {
      for (int64_t k = from; k < to; ++k) {
        Assemble(shape_.tp_rank + k * ranks, whole + k * shape_.vocabulary);
      }
    });
  }
  SampleTasks(host_, own_tasks_.data(), own, shape_.vocabulary);
  const int64_t first = shape_.tp_rank * PartOf(picked());
  for (int64_t k = 0; k < own; ++k) {
    const SampleTask& task = own_tasks_[k];
    exchanged_[first + k] = {task.id, task.valid ? 1 : 0};
    if (turn_has_logprobs_) logprobs_[first + k] = {task.id_logprobs, task.target_logprobs};
  }
}

absl::Status TokenSampler::ExchangeChoices() {
  const int64_t part = PartOf(picked());
  if (shape_.tensor_parallel > 1) {
    RETURN_IF_ERROR(Prefixed(
        communicator_->AllGather(&exchanged_[shape_.tp_rank * part],
                                 part * static_cast<int64_t>(sizeof(Choice)), exchanged_.data()),
        "all-gather of the drawn tokens"));
    if (turn_has_logprobs_) {
      RETURN_IF_ERROR(
          Prefixed(communicator_->AllGather(&logprobs_[shape_.tp_rank * part],
                                            part * static_cast<int64_t>(sizeof(RowLogprobs)),
                                            logprobs_.data()),
                   "all-gather of the log-probabilities"));
    }
  }
  for (int64_t i = 0; i < picked(); ++i) choices_[i] = exchanged_[PlaceOf(i)];
  return absl::OkStatus();
}

}  // namespace pergola
