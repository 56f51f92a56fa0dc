#include "worker/step/token_sampler.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "kernels/thread_pool.h"
#include "model/memory_plan.h"

namespace pergola {
namespace {

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
                           StageCommunicator* communicator)
    : shape_(shape),
      widest_(shape.widest_slice()),
      stream_(stream),
      host_(stream.host()),
      communicator_(communicator),
      logits_(shape.tensor_parallel * shape.logit_rows * widest_ *
              static_cast<int64_t>(sizeof(float))),
      device_logits_(stream, stream.device() == Device::kCpu
                                 ? 0
                                 : shape.logit_rows * shape.slices[shape.tp_rank].size() *
                                       static_cast<int64_t>(sizeof(float))),
      whole_(shape.tensor_parallel > 1
                 ? shape.own_rows() * shape.vocabulary * static_cast<int64_t>(sizeof(float))
                 : 0),
      best_(shape.tensor_parallel * shape.logit_rows),
      tasks_(shape.own_rows()),
      exchanged_(shape.tensor_parallel * shape.own_rows()),
      logprobs_(shape.tensor_parallel * shape.own_rows()),
      choices_(shape.logit_rows),
      rows_(shape.logit_rows) {
  wanted_.reserve(shape.step_tokens);
}

int64_t TokenSampler::bytes() const {
  // The plan (model/memory_plan.h) knows these sizes by number.
  static_assert(sizeof(Wanted) == kWantedRowBytes);
  static_assert(sizeof(SampleTask) == kSampleTaskBytes);
  static_assert(sizeof(Choice) + sizeof(RowLogprobs) == kSampleAnswerBytes);
  static_assert(sizeof(Choice) + sizeof(int32_t) == kTurnRowBytes);
  static_assert(sizeof(ValueAndId) == kBestBytes);
  return logits_.size() + whole_.size() + BytesOf(best_) + BytesOf(tasks_) + BytesOf(exchanged_) +
         BytesOf(logprobs_) + BytesOf(choices_) + BytesOf(rows_) + BytesOf(wanted_);
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

absl::Status TokenSampler::Sample(const v1::StepPlan& plan, const SlotTable& slots,
                                  Decoder& decoder, const float* hidden,
                                  std::vector<v1::EntryResult>* results) {
  ListWanted(plan);
  results->assign(plan.entries_size(), v1::EntryResult());
  kept_.clear();
  const auto total = static_cast<int64_t>(wanted_.size());
  for (int64_t begin = 0; begin < total; begin += shape_.logit_rows) {
    const int64_t count = std::min(shape_.logit_rows, total - begin);
    RETURN_IF_ERROR(SampleTurn(slots, decoder, hidden, begin, count));
    Answer(slots, begin, count, results);
  }
  for (v1::EntryResult& result : *results) {
    if (result.status() != v1::ENTRY_STATUS_NAN) continue;
    result.Clear();
    result.set_status(v1::ENTRY_STATUS_NAN);
  }
  return absl::OkStatus();
}

void TokenSampler::Answer(const SlotTable& slots, int64_t begin, int64_t count,
                          std::vector<v1::EntryResult>* results) const {
  const int64_t part = PartOf(count);
  for (int64_t i = 0; i < count; ++i) {
    const Wanted& wanted = wanted_[begin + i];
    v1::EntryResult& result = (*results)[wanted.entry];
    if (choices_[i].valid == 0) {
      result.set_status(v1::ENTRY_STATUS_NAN);
      continue;
    }
    const RowLogprobs& logprobs = logprobs_[Owner(begin, i) * part + i / shape_.tensor_parallel];
    if (wanted.draw) {
      result.add_ids(choices_[i].id);
      if (slots.sampling(wanted.slot).logprobs >= 0) {
        ToProto(logprobs.of_id, result.add_logprobs());
      }
    }
    if (wanted.target >= 0) ToProto(logprobs.of_target, result.add_target_logprobs());
  }
}

float* TokenSampler::Slice(int rank, int64_t count) const {
  return reinterpret_cast<float*>(logits_.data()) + rank * count * widest_;
}

bool TokenSampler::IsPlain(const Wanted& wanted, const SlotTable& slots) {
  const SlotSampling& sampling = slots.sampling(wanted.slot);
  return wanted.draw && wanted.target < 0 && wanted.mask == nullptr && sampling.temperature == 0 &&
         sampling.logprobs < 0 && !slots.Row(wanted.slot, wanted.position).edits();
}

absl::Status TokenSampler::SampleTurn(const SlotTable& slots, Decoder& decoder, const float* hidden,
                                      int64_t begin, int64_t count) {
  bool plain = true;
  turn_has_logprobs_ = false;
  for (int64_t i = 0; i < count; ++i) {
    const Wanted& wanted = wanted_[begin + i];
    rows_[i] = static_cast<int32_t>(wanted.row);
    plain = plain && IsPlain(wanted, slots);
    turn_has_logprobs_ =
        turn_has_logprobs_ || wanted.target >= 0 || slots.sampling(wanted.slot).logprobs >= 0;
  }
  RETURN_IF_ERROR(ComputeLogits(decoder, hidden, count));
  if (plain && shape_.tensor_parallel > 1 && !keep_) return ChooseGreedily(count);
  return GatherAndDraw(slots, begin, count);
}

// Leaves the logits of rows_ in this rank's slice, on the host.
absl::Status TokenSampler::ComputeLogits(Decoder& decoder, const float* hidden, int64_t count) {
  const absl::Span<const int32_t> rows(rows_.data(), count);
  float* slice = Slice(shape_.tp_rank, count);
  if (stream_.device() == Device::kCpu) {
    decoder.Logits(hidden, rows, slice);
  } else {
    decoder.Logits(hidden, rows, reinterpret_cast<float*>(device_logits_.data()));
    stream_.CopyToHost(
        slice, device_logits_.data(),
        count * shape_.slices[shape_.tp_rank].size() * static_cast<int64_t>(sizeof(float)));
  }
  return stream_.Synchronize();
}

// Every row is plain: each rank's best is enough.
absl::Status TokenSampler::ChooseGreedily(int64_t count) {
  const Range& slice = shape_.slices[shape_.tp_rank];
  const float* mine = Slice(shape_.tp_rank, count);
  ValueAndId* best = &best_[shape_.tp_rank * count];
  for (int64_t i = 0; i < count; ++i) {
    best[i] =
        ArgMax(host_, mine + i * slice.size(), slice.size(), static_cast<int32_t>(slice.begin));
  }
  RETURN_IF_ERROR(
      Prefixed(communicator_->AllGather(best, count * static_cast<int64_t>(sizeof(ValueAndId)),
                                        best_.data()),
               "all-gather of the greedy choices"));
  for (int64_t i = 0; i < count; ++i) {
    ValueAndId chosen = best_[i];
    for (int rank = 1; rank < shape_.tensor_parallel; ++rank) {
      const ValueAndId& other = best_[rank * count + i];
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

absl::Status TokenSampler::GatherAndDraw(const SlotTable& slots, int64_t begin, int64_t count) {
  if (shape_.tensor_parallel > 1) {
    RETURN_IF_ERROR(
        Prefixed(communicator_->AllGather(Slice(shape_.tp_rank, count),
                                          count * widest_ * static_cast<int64_t>(sizeof(float)),
                                          logits_.data()),
                 "all-gather of the logits"));
  }
  if (keep_ && shape_.tp_rank == 0) {
    for (int64_t i = 0; i < count; ++i) {
      kept_.emplace_back(shape_.vocabulary);
      Assemble(i, count, kept_.back().data());
    }
  }
  RunOwnTasks(slots, begin, count);
  return ExchangeChoices(begin, count);
}

// Row `row` of a turn of `count` rows, put together from the ranks' slices.
void TokenSampler::Assemble(int64_t row, int64_t count, float* whole) const {
  for (int rank = 0; rank < shape_.tensor_parallel; ++rank) {
    const Range& slice = shape_.slices[rank];
    std::memcpy(whole + slice.begin, Slice(rank, count) + row * slice.size(),
                slice.size() * sizeof(float));
  }
}

void TokenSampler::FillTask(const SlotTable& slots, const Wanted& wanted, SampleTask* task) const {
  const int logprobs = slots.sampling(wanted.slot).logprobs;
  *task = SampleTask();
  task->row = slots.Row(wanted.slot, wanted.position);
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

// Leaves this rank's part of exchanged_ and logprobs_ filled.
void TokenSampler::RunOwnTasks(const SlotTable& slots, int64_t begin, int64_t count) {
  const int ranks = shape_.tensor_parallel;
  const int64_t part = PartOf(count);
  auto* whole = reinterpret_cast<float*>(whole_.data());
  int64_t own = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (Owner(begin, i) != shape_.tp_rank) continue;
    FillTask(slots, wanted_[begin + i], &tasks_[own]);
    tasks_[own].row.logits =
        ranks == 1 ? Slice(0, count) + i * shape_.vocabulary : whole + own * shape_.vocabulary;
    ++own;
  }
  if (ranks > 1) {
    // Own row k is row k * ranks + the first one's number.
    const int64_t first = ((shape_.tp_rank - begin) % ranks + ranks) % ranks;
    host_.pool().ParallelFor(own, 1, [&](int64_t from, int64_t to) {
      for (int64_t k = from; k < to; ++k) {
        Assemble(first + k * ranks, count, whole + k * shape_.vocabulary);
      }
    });
  }
  SampleTasks(host_, tasks_.data(), own, shape_.vocabulary);
  for (int64_t k = 0; k < own; ++k) {
    const SampleTask& task = tasks_[k];
    exchanged_[shape_.tp_rank * part + k] = {task.id, task.valid ? 1 : 0};
    if (turn_has_logprobs_) {
      logprobs_[shape_.tp_rank * part + k] = {task.id_logprobs, task.target_logprobs};
    }
  }
}

absl::Status TokenSampler::ExchangeChoices(int64_t begin, int64_t count) {
  const int64_t part = PartOf(count);
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
  for (int64_t i = 0; i < count; ++i) {
    choices_[i] = exchanged_[Owner(begin, i) * part + i / shape_.tensor_parallel];
  }
  return absl::OkStatus();
}

}  // namespace pergola
