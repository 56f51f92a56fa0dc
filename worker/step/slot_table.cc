#include "worker/step/slot_table.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/status.h"
#include "model/memory_plan.h"

namespace pergola {
namespace {

// Every refusal of a plan is one line that begins with the field.
template <typename... Parts>
absl::Status Refused(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

absl::Status InRange(absl::string_view field, float value, float least, float most) {
  if (value >= least && value <= most) return absl::OkStatus();  // false for NaN
  return Refused("sampling.", field, " is ", value, "; it must be ", least, " to ", most);
}

bool LooksBack(const v1::Sampling& sampling) {
  return (sampling.repetition_penalty() != 0 && sampling.repetition_penalty() != 1) ||
         sampling.presence_penalty() != 0 || sampling.frequency_penalty() != 0 ||
         sampling.no_repeat_ngram_size() > 0;
}

// The fields that limit a draw; greedy uses none of them.
absl::Status ValidateFilters(const v1::Sampling& sampling, int64_t vocabulary) {
  if (sampling.temperature() == 0) return absl::OkStatus();
  if (sampling.top_k() > vocabulary) {
    return Refused("sampling.top_k is ", sampling.top_k(), "; the vocabulary has ", vocabulary,
                   " ids");
  }
  if (!(sampling.top_p() > 0 && sampling.top_p() <= 1)) {
    return Refused("sampling.top_p is ", sampling.top_p(), "; it must be above 0 and at most 1");
  }
  RETURN_IF_ERROR(InRange("min_p", sampling.min_p(), 0, 1));
  return InRange("typical_p", sampling.typical_p(), 0, 1);
}

absl::Status ValidateBiases(const v1::Sampling& sampling, int64_t vocabulary) {
  if (sampling.logit_bias_size() > int64_t{kMaxLogitBiases}) {
    return Refused("sampling.logit_bias has ", sampling.logit_bias_size(), " ids; a slot takes ",
                   int64_t{kMaxLogitBiases});
  }
  for (int i = 0; i < sampling.logit_bias_size(); ++i) {
    const v1::LogitBias& bias = sampling.logit_bias(i);
    if (bias.id() < 0 || bias.id() >= vocabulary) {
      return Refused("sampling.logit_bias[", i, "].id is ", bias.id(), "; the vocabulary has ",
                     vocabulary, " ids");
    }
    if (i > 0 && bias.id() <= sampling.logit_bias(i - 1).id()) {
      return Refused("sampling.logit_bias[", i, "].id is ", bias.id(), " after ",
                     sampling.logit_bias(i - 1).id(), "; ids must ascend");
    }
    if (!(bias.bias() < std::numeric_limits<float>::infinity())) {
      return Refused("sampling.logit_bias[", i, "].bias is ", bias.bias(),
                     "; it must be finite or minus infinity");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSuppressed(const v1::Sampling& sampling, int64_t vocabulary) {
  if (sampling.suppressed_size() > int64_t{kMaxSuppressedIds}) {
    return Refused("sampling.suppressed has ", sampling.suppressed_size(), " ids; a slot takes ",
                   int64_t{kMaxSuppressedIds});
  }
  for (int i = 0; i < sampling.suppressed_size(); ++i) {
    if (sampling.suppressed(i) < 0 || sampling.suppressed(i) >= vocabulary) {
      return Refused("sampling.suppressed[", i, "] is ", sampling.suppressed(i),
                     "; the vocabulary has ", vocabulary, " ids");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateSampling(const v1::Sampling& sampling, const SlotLimits& limits) {
  RETURN_IF_ERROR(InRange("temperature", sampling.temperature(), 0, kMaxTemperature));
  RETURN_IF_ERROR(ValidateFilters(sampling, limits.vocabulary));
  RETURN_IF_ERROR(InRange("repetition_penalty", sampling.repetition_penalty(), 0, kMaxPenalty));
  RETURN_IF_ERROR(
      InRange("presence_penalty", sampling.presence_penalty(), -kMaxPenalty, kMaxPenalty));
  RETURN_IF_ERROR(
      InRange("frequency_penalty", sampling.frequency_penalty(), -kMaxPenalty, kMaxPenalty));
  if (sampling.no_repeat_ngram_size() > limits.context_length) {
    return Refused("sampling.no_repeat_ngram_size is ", sampling.no_repeat_ngram_size(),
                   "; the context has ", limits.context_length, " positions");
  }
  RETURN_IF_ERROR(ValidateBiases(sampling, limits.vocabulary));
  if (sampling.min_new_tokens() > limits.context_length) {
    return Refused("sampling.min_new_tokens is ", sampling.min_new_tokens(), "; the context has ",
                   limits.context_length, " positions");
  }
  RETURN_IF_ERROR(ValidateSuppressed(sampling, limits.vocabulary));
  if (sampling.logprobs() > kMaxLogprobs) {
    return Refused("sampling.logprobs is ", sampling.logprobs(), "; it must be 0 to ",
                   kMaxLogprobs);
  }
  return absl::OkStatus();
}

absl::Status ValidateMask(const v1::Mask& mask, int64_t vocabulary) {
  const int64_t bitmap_bytes = (vocabulary + 7) / 8;
  const int64_t bytes = static_cast<int64_t>(mask.bitmap().size());
  if (bytes > 0 && mask.ids_size() > 0) {
    return Refused("mask.bitmap and mask.ids are both set; give one");
  }
  if (bytes == 0 && mask.ids_size() == 0) {
    return Refused("mask.ids is empty and so is mask.bitmap; a mask allows at least one id");
  }
  if (bytes > 0 && bytes != bitmap_bytes) {
    return Refused("mask.bitmap has ", bytes, " bytes; a vocabulary of ", vocabulary, " needs ",
                   bitmap_bytes);
  }
  for (int i = 0; i < mask.ids_size(); ++i) {
    if (mask.ids(i) < 0 || mask.ids(i) >= vocabulary) {
      return Refused("mask.ids[", i, "] is ", mask.ids(i), "; the vocabulary has ", vocabulary,
                     " ids");
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateCopies(const v1::StepPlan& plan, int64_t block_count) {
  for (int i = 0; i < plan.copies_size(); ++i) {
    const v1::BlockCopy& copy = plan.copies(i);
    if (copy.from_block() >= block_count) {
      return Refused("copies[", i, "].from_block is ", copy.from_block(), "; there are ",
                     block_count, " blocks");
    }
    if (copy.to_block() >= block_count) {
      return Refused("copies[", i, "].to_block is ", copy.to_block(), "; there are ", block_count,
                     " blocks");
    }
    if (copy.from_block() == copy.to_block()) {
      return Refused("copies[", i, "].to_block is ", copy.to_block(), ", the block copied from");
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t EntryRows(const v1::Entry& entry) {
  return entry.ids_size() > 0 ? entry.ids_size() : (entry.has_from() ? 1 : 0);
}

SlotTable::SlotTable(const SlotLimits& limits)
    : limits_(limits),
      table_stride_(limits.blocks_per_sequence()),
      slots_(limits.slot_count),
      tables_(limits.slot_count * table_stride_),
      positions_(limits.step_tokens),
      slot_of_row_(limits.step_tokens),
      table_of_row_(limits.step_tokens),
      history_(limits.samples ? limits.slot_count * limits.context_length : 0),
      bias_ids_(limits.samples ? limits.slot_count * int64_t{kMaxLogitBiases} : 0),
      biases_(limits.samples ? limits.slot_count * int64_t{kMaxLogitBiases} : 0),
      suppressed_(limits.samples ? limits.slot_count * int64_t{kMaxSuppressedIds} : 0) {
  changes_.reserve(limits.slot_count);
}

int64_t SlotTable::bytes() const {
  // The plan (model/memory_plan.h) knows these sizes by number.
  static_assert(sizeof(Slot) + sizeof(TableChange) == kSlotStateBytes);
  static_assert(2 * sizeof(int32_t) + sizeof(int64_t) == kRowStateBytes);
  return static_cast<int64_t>(
      slots_.size() * sizeof(Slot) + changes_.capacity() * sizeof(TableChange) +
      tables_.size() * sizeof(int32_t) + positions_.size() * sizeof(int32_t) +
      slot_of_row_.size() * sizeof(int64_t) + table_of_row_.size() * sizeof(int32_t) +
      history_.size() * sizeof(int32_t) + bias_ids_.size() * sizeof(int32_t) +
      biases_.size() * sizeof(float) + suppressed_.size() * sizeof(int32_t));
}

void SlotTable::LimitBlocks(int64_t block_count) {
  PERGOLA_CHECK(block_count >= 1 && block_count <= limits_.block_count);
  limits_.block_count = block_count;
}

void SlotTable::Clear() {
  std::fill(slots_.begin(), slots_.end(), Slot());
}

absl::Status SlotTable::ValidateHistory(const v1::SlotStart& start) const {
  for (int j = 0; j < start.history_size(); ++j) {
    if (start.history(j) < 0 || start.history(j) >= limits_.vocabulary) {
      return Refused("history[", j, "] is ", start.history(j), "; the vocabulary has ",
                     limits_.vocabulary, " ids");
    }
  }
  if (start.computed() >= limits_.context_length) {
    return Refused("computed is ", start.computed(), "; the context has ", limits_.context_length,
                   " positions, of which one must be left to compute");
  }
  const auto computed = static_cast<int64_t>(start.computed());
  const bool needed = LooksBack(start.sampling());
  if (start.history_size() != computed && (needed || start.history_size() != 0)) {
    return Refused("history has ", start.history_size(), " ids; computed is ", computed,
                   needed ? ", and the parameters look back at all of them" : "");
  }
  return absl::OkStatus();
}

absl::Status SlotTable::ValidateStart(const v1::SlotStart& start) const {
  const v1::Sampling& sampling = start.sampling();
  RETURN_IF_ERROR(ValidateSampling(sampling, limits_));
  RETURN_IF_ERROR(ValidateHistory(start));
  if (start.prompt_tokens() > limits_.context_length) {
    return Refused("prompt_tokens is ", start.prompt_tokens(), "; the context has ",
                   limits_.context_length, " positions");
  }
  const bool counts_new = sampling.presence_penalty() != 0 || sampling.frequency_penalty() != 0 ||
                          (sampling.min_new_tokens() > 0 && sampling.suppressed_size() > 0);
  if (counts_new && start.prompt_tokens() == 0) {
    return Refused("prompt_tokens is 0; parameters that count new ids need it, 1 to ",
                   limits_.context_length);
  }
  return absl::OkStatus();
}

absl::Status SlotTable::ValidateStarts(const v1::StepPlan& plan, Starts* starts) const {
  for (int i = 0; i < plan.starts_size(); ++i) {
    const v1::SlotStart& start = plan.starts(i);
    if (start.slot() >= limits_.slot_count) {
      return Refused("starts[", i, "].slot is ", start.slot(), "; there are ", limits_.slot_count,
                     " slots");
    }
    if ((*starts)[start.slot()] != nullptr) {
      return Refused("starts[", i, "].slot is ", start.slot(), ", started twice in one plan");
    }
    (*starts)[start.slot()] = &start;
    RETURN_IF_ERROR(Prefixed(ValidateStart(start),
                             ToStd(absl::StrCat("starts[", i, "] (slot ", start.slot(), ")"))));
  }
  return absl::OkStatus();
}

absl::Status SlotTable::ValidateTokens(const v1::StepPlan& plan, const v1::Entry& entry) const {
  if (entry.ids_size() > 0 && entry.has_from()) {
    return Refused("ids has ", entry.ids_size(), " tokens and from is set; give one");
  }
  if (entry.ids_size() == 0 && !entry.has_from()) {
    return Refused("ids is empty and from is not set; an entry computes at least one token");
  }
  for (int i = 0; i < entry.ids_size(); ++i) {
    if (entry.ids(i) < 0 || entry.ids(i) >= limits_.vocabulary) {
      return Refused("ids[", i, "] is ", entry.ids(i), "; the vocabulary has ", limits_.vocabulary,
                     " ids");
    }
  }
  if (!entry.has_from()) return absl::OkStatus();
  if (entry.from().plan_id() == 0 || entry.from().plan_id() >= plan.plan_id()) {
    return Refused("from.plan_id is ", entry.from().plan_id(), "; it must be a plan before ",
                   plan.plan_id());
  }
  if (entry.has_mask()) {
    return Refused("mask is set beside from; a mask needs the token's value, give ids");
  }
  return absl::OkStatus();
}

absl::Status SlotTable::ValidateTable(const v1::Entry& entry, const Slot& slot) const {
  int64_t table_length = slot.table_length;
  if (entry.block_ids_size() > 0) {
    if (entry.block_table_from() > slot.table_length) {
      return Refused("block_table_from is ", entry.block_table_from(), "; the slot's table has ",
                     slot.table_length, " blocks");
    }
    table_length = static_cast<int64_t>(entry.block_table_from()) + entry.block_ids_size();
    if (table_length > table_stride_) {
      return Refused("block_ids has ", entry.block_ids_size(), " blocks from index ",
                     entry.block_table_from(), "; a context of ", limits_.context_length,
                     " tokens takes ", table_stride_, " blocks");
    }
  }
  for (int i = 0; i < entry.block_ids_size(); ++i) {
    if (entry.block_ids(i) >= limits_.block_count) {
      return Refused("block_ids[", i, "] is ", entry.block_ids(i), "; there are ",
                     limits_.block_count, " blocks");
    }
  }
  const int64_t end = static_cast<int64_t>(entry.first_position()) + EntryRows(entry);
  if (end > table_length * limits_.block_tokens) {
    return Refused("block_ids leave the table at ", table_length, " blocks of ",
                   limits_.block_tokens, " tokens, which do not hold position ", end - 1);
  }
  return absl::OkStatus();
}

absl::Status SlotTable::ValidateWants(const v1::Entry& entry) const {
  const int64_t rows = EntryRows(entry);
  for (int i = 0; i < entry.logits_at_size(); ++i) {
    if (entry.logits_at(i) >= rows) {
      return Refused("logits_at[", i, "] is ", entry.logits_at(i), "; the entry has ", rows,
                     " tokens");
    }
    if (i > 0 && entry.logits_at(i) <= entry.logits_at(i - 1)) {
      return Refused("logits_at[", i, "] is ", entry.logits_at(i), " after ",
                     entry.logits_at(i - 1), "; offsets must ascend");
    }
  }
  if (entry.draft_ids_size() > 0) {
    return Refused("draft_ids has ", entry.draft_ids_size(),
                   " tokens; this executor verifies no drafts");
  }
  if (entry.candidates() != 0) {
    return Refused("candidates is ", entry.candidates(), "; this executor returns none");
  }
  RETURN_IF_ERROR(ValidateTargets(entry));
  if (entry.has_mask()) return ValidateMask(entry.mask(), limits_.vocabulary);
  return absl::OkStatus();
}

absl::Status SlotTable::ValidateTargets(const v1::Entry& entry) const {
  if (entry.targets_size() > EntryRows(entry)) {
    return Refused("targets has ", entry.targets_size(), " ids; the entry has ", EntryRows(entry),
                   " tokens");
  }
  for (int i = 0; i < entry.targets_size(); ++i) {
    if (entry.targets(i) < 0 || entry.targets(i) >= limits_.vocabulary) {
      return Refused("targets[", i, "] is ", entry.targets(i), "; the vocabulary has ",
                     limits_.vocabulary, " ids");
    }
  }
  if (entry.target_logprobs() > kMaxLogprobs) {
    return Refused("target_logprobs is ", entry.target_logprobs(), "; it must be 0 to ",
                   kMaxLogprobs);
  }
  return absl::OkStatus();
}

absl::Status SlotTable::ValidateEntry(const v1::StepPlan& plan, const v1::Entry& entry,
                                      const Slot& slot) const {
  if (!slot.started) return Refused("slot is ", entry.slot(), ", which no plan has started");
  RETURN_IF_ERROR(ValidateTokens(plan, entry));
  if (entry.first_position() != slot.computed) {
    return Refused("first_position is ", entry.first_position(), "; the slot has computed ",
                   slot.computed, " positions");
  }
  const int64_t end = static_cast<int64_t>(entry.first_position()) + EntryRows(entry);
  if (end > limits_.context_length) {
    return Refused("first_position is ", entry.first_position(), " for ", EntryRows(entry),
                   " tokens; the context has ", limits_.context_length, " positions");
  }
  RETURN_IF_ERROR(ValidateTable(entry, slot));
  return ValidateWants(entry);
}

absl::Status SlotTable::Validate(const v1::StepPlan& plan) const {
  RETURN_IF_ERROR(ValidateCopies(plan, limits_.block_count));
  Starts starts(limits_.slot_count);
  RETURN_IF_ERROR(ValidateStarts(plan, &starts));
  std::vector<bool> used(limits_.slot_count);
  int64_t rows = 0;
  for (int i = 0; i < plan.entries_size(); ++i) {
    const v1::Entry& entry = plan.entries(i);
    if (entry.slot() >= limits_.slot_count) {
      return Refused("entries[", i, "].slot is ", entry.slot(), "; there are ", limits_.slot_count,
                     " slots");
    }
    if (used[entry.slot()]) {
      return Refused("entries[", i, "].slot is ", entry.slot(), ", which has an entry already");
    }
    used[entry.slot()] = true;
    Slot slot = slots_[entry.slot()];
    if (starts[entry.slot()] != nullptr) {
      slot = Slot();
      slot.started = true;
      slot.computed = starts[entry.slot()]->computed();
    }
    RETURN_IF_ERROR(Prefixed(ValidateEntry(plan, entry, slot),
                             ToStd(absl::StrCat("entries[", i, "] (slot ", entry.slot(), ")"))));
    rows += EntryRows(entry);
  }
  if (rows > limits_.step_tokens) {
    return Refused("entries hold ", rows, " tokens; a step takes at most ", limits_.step_tokens);
  }
  return absl::OkStatus();
}

void SlotTable::Start(const v1::SlotStart& start) {
  const v1::Sampling& from = start.sampling();
  Slot& slot = slots_[start.slot()];
  slot = Slot();
  slot.started = true;
  slot.computed = start.computed();
  slot.looks_back = LooksBack(from);
  SlotSampling& to = slot.sampling;
  to.temperature = from.temperature();
  to.top_k = from.top_k();
  // Greedy does not use it, and a plan may then leave it 0.
  to.top_p = from.temperature() == 0 ? 1 : from.top_p();
  to.min_p = from.min_p();
  to.typical_p = from.typical_p();
  to.repetition_penalty = from.repetition_penalty();
  to.presence_penalty = from.presence_penalty();
  to.frequency_penalty = from.frequency_penalty();
  to.no_repeat_ngram_size = from.no_repeat_ngram_size();
  to.min_new_tokens = from.min_new_tokens();
  to.prompt_tokens = start.prompt_tokens();
  to.seed = start.seed();
  to.index = start.index();
  to.logprobs = from.has_logprobs() ? static_cast<int>(from.logprobs()) : -1;
  if (!limits_.samples) return;
  to.bias_count = from.logit_bias_size();
  to.suppressed_count = from.suppressed_size();
  for (int i = 0; i < from.logit_bias_size(); ++i) {
    bias_ids_[start.slot() * int64_t{kMaxLogitBiases} + i] = from.logit_bias(i).id();
    biases_[start.slot() * int64_t{kMaxLogitBiases} + i] = from.logit_bias(i).bias();
  }
  std::copy(from.suppressed().begin(), from.suppressed().end(),
            suppressed_.begin() + start.slot() * int64_t{kMaxSuppressedIds});
  if (slot.looks_back) {
    std::copy(start.history().begin(), start.history().end(), HistoryOf(start.slot()));
  }
}

SampleRow SlotTable::Row(int64_t slot, int64_t position) const {
  PERGOLA_CHECK(limits_.samples && position <= slots_[slot].computed);
  const SlotSampling& from = slots_[slot].sampling;
  SampleRow row;
  row.temperature = from.temperature;
  row.top_k = from.top_k;
  row.top_p = from.top_p;
  row.min_p = from.min_p;
  row.typical_p = from.typical_p;
  row.seed = from.seed;
  row.index = from.index;
  row.position = static_cast<uint32_t>(position);
  row.repetition_penalty = from.repetition_penalty;
  row.presence_penalty = from.presence_penalty;
  row.frequency_penalty = from.frequency_penalty;
  row.no_repeat_ngram_size = from.no_repeat_ngram_size;
  row.min_new_tokens = from.min_new_tokens;
  row.prompt_tokens = from.prompt_tokens;
  row.suppressed = &suppressed_[slot * int64_t{kMaxSuppressedIds}];
  row.suppressed_count = from.suppressed_count;
  row.bias_ids = &bias_ids_[slot * int64_t{kMaxLogitBiases}];
  row.biases = &biases_[slot * int64_t{kMaxLogitBiases}];
  row.bias_count = from.bias_count;
  if (slots_[slot].looks_back) {
    row.history = &history_[slot * limits_.context_length];
    row.history_count = position;
  }
  return row;
}

void SlotTable::Correct(const v1::StepPlan& plan, absl::Span<const int32_t> ids) {
  for (const v1::Entry& entry : plan.entries()) {
    if (limits_.samples && slots_[entry.slot()].looks_back) {
      std::copy_n(ids.begin(), EntryRows(entry), HistoryOf(entry.slot()) + entry.first_position());
    }
    ids.remove_prefix(EntryRows(entry));
  }
}

StepRows SlotTable::Apply(const v1::StepPlan& plan, absl::Span<const int32_t> ids) {
  for (const v1::SlotStart& start : plan.starts()) Start(start);
  changes_.clear();
  int64_t row = 0;
  for (const v1::Entry& entry : plan.entries()) {
    Slot& slot = slots_[entry.slot()];
    int32_t* table = &tables_[entry.slot() * table_stride_];
    if (entry.block_ids_size() > 0) {
      std::copy(entry.block_ids().begin(), entry.block_ids().end(),
                table + entry.block_table_from());
      slot.table_length = entry.block_table_from() + entry.block_ids_size();
      changes_.push_back({static_cast<int32_t>(entry.slot()),
                          static_cast<int32_t>(entry.block_table_from()), entry.block_ids_size()});
    }
    if (limits_.samples && slot.looks_back) {
      PERGOLA_CHECK(row + EntryRows(entry) <= static_cast<int64_t>(ids.size()));
      std::copy_n(ids.begin() + row, EntryRows(entry), HistoryOf(entry.slot()) + slot.computed);
    }
    for (int64_t i = 0; i < EntryRows(entry); ++i, ++row, ++slot.computed) {
      positions_[row] = static_cast<int32_t>(slot.computed);
      slot_of_row_[row] = table[slot.computed / limits_.block_tokens] * limits_.block_tokens +
                          slot.computed % limits_.block_tokens;
      table_of_row_[row] = static_cast<int32_t>(entry.slot());
    }
  }
  StepRows rows;
  rows.count = row;
  rows.positions = positions_.data();
  rows.slot_of_row = slot_of_row_.data();
  rows.table_of_row = table_of_row_.data();
  rows.block_tables = tables_.data();
  rows.table_stride = table_stride_;
  return rows;
}

}  // namespace pergola
