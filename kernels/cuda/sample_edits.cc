#include "kernels/cuda/sample_edits.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/sample_ngram.h"

namespace pergola {
namespace {

bool Penalises(const SampleRow& row) {
  return (row.repetition_penalty != 0 && row.repetition_penalty != 1) ||
         row.presence_penalty != 0 || row.frequency_penalty != 0;
}

}  // namespace

int64_t EditBound(const SampleRow& row, int64_t slice) {
  int64_t bound = row.bias_count;
  if (Penalises(row)) bound += row.history_count;
  if (row.no_repeat_ngram_size > 0) bound += row.history_count;
  if (row.suppresses()) bound += row.suppressed_count;
  return std::min(bound, slice);
}

int64_t EditLister::Bytes(const Range& slice, int64_t history) {
  return (slice.size() + history) * static_cast<int64_t>(sizeof(int32_t));
}

EditLister::EditLister(const Range& slice, int64_t history)
    : slice_(slice), place_(slice.size()), borders_(history) {}

int64_t EditLister::bytes() const {
  return Bytes(slice_, static_cast<int64_t>(borders_.size()));
}

SampleEdit* EditLister::Find(int32_t id) {
  if (id < slice_.begin || id >= slice_.end) return nullptr;
  int32_t& place = place_[id - slice_.begin];
  if (place == 0) {
    edits_[count_] = SampleEdit();
    edits_[count_].id = static_cast<int32_t>(id - slice_.begin);
    place = static_cast<int32_t>(++count_);
  }
  return &edits_[place - 1];
}

int64_t EditLister::List(const SampleRow& row, SampleEdit* edits) {
  PERGOLA_CHECK(row.history_count <= static_cast<int64_t>(borders_.size()) || !row.looks_back());
  edits_ = edits;
  count_ = 0;
  const auto forbid = [this](int32_t id) {
    if (SampleEdit* edit = Find(id)) edit->flags |= kEditForbid;
  };
  for (int64_t i = 0; i < row.bias_count; ++i) {
    if (SampleEdit* edit = Find(row.bias_ids[i])) {
      edit->flags |= kEditBias;
      edit->bias = row.biases[i];
    }
  }
  if (Penalises(row)) {
    for (int64_t i = 0; i < row.history_count; ++i) {
      SampleEdit* edit = Find(row.history[i]);
      if (edit == nullptr) continue;
      edit->flags |= kEditSeen;
      edit->new_count += i >= row.prompt_tokens ? 1 : 0;
    }
  }
  if (row.no_repeat_ngram_size > 0) ForEachRepeatedNgramEnd(row, borders_.data(), forbid);
  if (row.suppresses()) {
    for (int64_t i = 0; i < row.suppressed_count; ++i) forbid(row.suppressed[i]);
  }
  for (int64_t i = 0; i < count_; ++i) place_[edits[i].id] = 0;
  return count_;
}

}  // namespace pergola
