#include "worker/step/token_sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/status.h"

namespace pergola {

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
      communicator_(communicator),
      logits_(shape.tensor_parallel * shape.logit_rows * widest_ *
              static_cast<int64_t>(sizeof(float))),
      row_(shape.tensor_parallel > 1 ? shape.vocabulary * static_cast<int64_t>(sizeof(float)) : 0),
      bitmap_((shape.vocabulary + 7) / 8),
      best_(shape.tensor_parallel * shape.logit_rows),
      drawn_(shape.tensor_parallel * shape.logit_rows),
      tokens_(shape.logit_rows),
      rows_(shape.logit_rows) {}

int64_t TokenSampler::bytes() const {
  return logits_.size() + row_.size() + bitmap_.size() +
         static_cast<int64_t>(best_.size() * sizeof(ValueAndId) + drawn_.size() * sizeof(int32_t) +
                              tokens_.size() * sizeof(int32_t) + rows_.size() * sizeof(int64_t));
}

absl::Span<const float> TokenSampler::Kept(int64_t row) const {
  PERGOLA_CHECK(row >= 0 && row < static_cast<int64_t>(kept_.size()));
  return kept_[row];
}

void TokenSampler::ListWanted(const v1::StepPlan& plan, const SlotTable& slots) {
  wanted_.clear();
  int64_t first_row = 0;
  for (int e = 0; e < plan.entries_size(); ++e) {
    const v1::Entry& entry = plan.entries(e);
    for (uint32_t offset : entry.logits_at()) {
      Wanted wanted;
      wanted.entry = e;
      wanted.row = first_row + offset;
      wanted.position = entry.first_position() + offset + 1;
      wanted.sampling = &slots.sampling(entry.slot());
      wanted.mask = entry.has_mask() ? &entry.mask() : nullptr;
      wanted_.push_back(wanted);
    }
    first_row += EntryRows(entry);
  }
}

absl::Status TokenSampler::Sample(const v1::StepPlan& plan, const SlotTable& slots,
                                  Decoder& decoder, const float* hidden,
                                  std::vector<v1::EntryResult>* results) {
  ListWanted(plan, slots);
  results->assign(plan.entries_size(), v1::EntryResult());
  kept_.clear();
  const int64_t total = static_cast<int64_t>(wanted_.size());
  for (int64_t begin = 0; begin < total; begin += shape_.logit_rows) {
    const int64_t count = std::min(shape_.logit_rows, total - begin);
    RETURN_IF_ERROR(SampleTurn(decoder, hidden, begin, count));
    for (int64_t i = 0; i < count; ++i) {
      v1::EntryResult& result = (*results)[wanted_[begin + i].entry];
      if (tokens_[i] < 0) result.set_status(v1::ENTRY_STATUS_NAN);
      result.add_ids(tokens_[i]);
    }
  }
  for (v1::EntryResult& result : *results) {
    if (result.status() == v1::ENTRY_STATUS_NAN) result.clear_ids();
  }
  return absl::OkStatus();
}

float* TokenSampler::Slice(int rank, int64_t count) const {
  return reinterpret_cast<float*>(logits_.data()) + rank * count * widest_;
}

absl::Status TokenSampler::SampleTurn(Decoder& decoder, const float* hidden, int64_t begin,
                                      int64_t count) {
  bool greedy = true;
  for (int64_t i = 0; i < count; ++i) {
    const Wanted& wanted = wanted_[begin + i];
    rows_[i] = wanted.row;
    greedy = greedy && wanted.sampling->temperature == 0 && wanted.mask == nullptr;
  }
  decoder.Logits(hidden, absl::MakeConstSpan(rows_.data(), count), Slice(shape_.tp_rank, count));
  if (greedy && shape_.tensor_parallel > 1 && !keep_) return ChooseGreedily(count);
  return GatherAndDraw(begin, count);
}

// Every row is greedy: each rank's best is enough.
absl::Status TokenSampler::ChooseGreedily(int64_t count) {
  const Range& slice = shape_.slices[shape_.tp_rank];
  const float* mine = Slice(shape_.tp_rank, count);
  ValueAndId* best = &best_[shape_.tp_rank * count];
  for (int64_t i = 0; i < count; ++i) {
    best[i] =
        ArgMax(stream_, mine + i * slice.size(), slice.size(), static_cast<int32_t>(slice.begin));
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
    tokens_[i] = chosen.id;
  }
  return absl::OkStatus();
}

absl::Status TokenSampler::GatherAndDraw(int64_t begin, int64_t count) {
  const int ranks = shape_.tensor_parallel;
  if (ranks > 1) {
    RETURN_IF_ERROR(
        Prefixed(communicator_->AllGather(Slice(shape_.tp_rank, count),
                                          count * widest_ * static_cast<int64_t>(sizeof(float)),
                                          logits_.data()),
                 "all-gather of the logits"));
  }
  int32_t* mine = &drawn_[shape_.tp_rank * count];
  for (int64_t i = 0; i < count; ++i) {
    const bool my_row = (begin + i) % ranks == shape_.tp_rank;
    const bool keep_row = keep_ && shape_.tp_rank == 0;
    mine[i] = -1;
    if (!my_row && !keep_row) continue;
    const float* logits = WholeRow(i, count);
    if (keep_row) kept_.emplace_back(logits, logits + shape_.vocabulary);
    if (my_row) mine[i] = Draw(wanted_[begin + i], logits);
  }
  if (ranks > 1) {
    RETURN_IF_ERROR(
        Prefixed(communicator_->AllGather(mine, count * static_cast<int64_t>(sizeof(int32_t)),
                                          drawn_.data()),
                 "all-gather of the drawn tokens"));
  }
  for (int64_t i = 0; i < count; ++i) tokens_[i] = drawn_[(begin + i) % ranks * count + i];
  return absl::OkStatus();
}

// Row `row` of a turn of `count` rows, put together from the ranks' slices.
const float* TokenSampler::WholeRow(int64_t row, int64_t count) {
  if (shape_.tensor_parallel == 1) return Slice(0, count) + row * shape_.vocabulary;
  float* whole = reinterpret_cast<float*>(row_.data());
  for (int rank = 0; rank < shape_.tensor_parallel; ++rank) {
    const Range& slice = shape_.slices[rank];
    std::memcpy(whole + slice.begin, Slice(rank, count) + row * slice.size(),
                slice.size() * sizeof(float));
  }
  return whole;
}

const uint8_t* TokenSampler::MaskBitmap(const v1::Mask& mask) {
  if (!mask.bitmap().empty()) return reinterpret_cast<const uint8_t*>(mask.bitmap().data());
  std::fill_n(bitmap_.data(), bitmap_.size(), uint8_t{0});
  for (int32_t id : mask.ids()) bitmap_.data()[id / 8] |= static_cast<uint8_t>(1U << (id % 8));
  return bitmap_.data();
}

int32_t TokenSampler::Draw(const Wanted& wanted, const float* logits) {
  SampleRow row;
  row.logits = logits;
  row.temperature = wanted.sampling->temperature;
  row.top_k = wanted.sampling->top_k;
  // Greedy does not use it, and a plan may then leave it 0.
  row.top_p = row.temperature == 0 ? 1 : wanted.sampling->top_p;
  row.seed = wanted.sampling->seed;
  row.index = wanted.sampling->index;
  row.position = wanted.position;
  row.mask = wanted.mask == nullptr ? nullptr : MaskBitmap(*wanted.mask);
  return pergola::Sample(stream_, row, shape_.vocabulary);
}

}  // namespace pergola
