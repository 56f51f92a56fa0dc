#include "worker/step/slot_table.h"

#include <algorithm>
#include <cmath>
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

absl::Status ValidateSampling(const v1::Sampling& sampling) {
  const float temperature = sampling.temperature();
  if (!std::isfinite(temperature) || temperature < 0 || temperature > kMaxTemperature) {
    return Refused("sampling.temperature is ", temperature, "; it must be 0 to ", kMaxTemperature);
  }
  // Greedy uses nothing else.
  if (temperature == 0) return absl::OkStatus();
  if (!(sampling.top_p() > 0 && sampling.top_p() <= 1)) {
    return Refused("sampling.top_p is ", sampling.top_p(), "; it must be above 0 and at most 1");
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
      table_of_row_(limits.step_tokens) {}

int64_t SlotTable::bytes() const {
  // The plan (model/memory_plan.h) knows these sizes by number.
  static_assert(sizeof(Slot) == kSlotStateBytes);
  static_assert(2 * sizeof(int32_t) + sizeof(int64_t) == kRowStateBytes);
  return static_cast<int64_t>(slots_.size() * sizeof(Slot) + tables_.size() * sizeof(int32_t) +
                              positions_.size() * sizeof(int32_t) +
                              slot_of_row_.size() * sizeof(int64_t) +
                              table_of_row_.size() * sizeof(int32_t));
}

void SlotTable::LimitBlocks(int64_t block_count) {
  PERGOLA_CHECK(block_count >= 1 && block_count <= limits_.block_count);
  limits_.block_count = block_count;
}

void SlotTable::Clear() {
  std::fill(slots_.begin(), slots_.end(), Slot());
}

absl::Status SlotTable::ValidateStarts(const v1::StepPlan& plan, std::vector<bool>* started) const {
  for (int i = 0; i < plan.starts_size(); ++i) {
    const v1::SlotStart& start = plan.starts(i);
    if (start.slot() >= limits_.slot_count) {
      return Refused("starts[", i, "].slot is ", start.slot(), "; there are ", limits_.slot_count,
                     " slots");
    }
    if ((*started)[start.slot()]) {
      return Refused("starts[", i, "].slot is ", start.slot(), ", started twice in one plan");
    }
    (*started)[start.slot()] = true;
    RETURN_IF_ERROR(Prefixed(ValidateSampling(start.sampling()),
                             ToStd(absl::StrCat("starts[", i, "] (slot ", start.slot(), ")"))));
    for (int j = 0; j < start.history_size(); ++j) {
      if (start.history(j) < 0 || start.history(j) >= limits_.vocabulary) {
        return Refused("starts[", i, "].history[", j, "] is ", start.history(j),
                       "; the vocabulary has ", limits_.vocabulary, " ids");
      }
    }
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
  if (entry.has_mask()) return ValidateMask(entry.mask(), limits_.vocabulary);
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
  std::vector<bool> started(limits_.slot_count);
  RETURN_IF_ERROR(ValidateStarts(plan, &started));
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
    if (started[entry.slot()]) {
      slot = Slot();
      slot.started = true;
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

StepRows SlotTable::Apply(const v1::StepPlan& plan) {
  for (const v1::SlotStart& start : plan.starts()) {
    Slot& slot = slots_[start.slot()];
    slot = Slot();
    slot.started = true;
    slot.sampling = SlotSampling{start.sampling().temperature(), start.sampling().top_k(),
                                 start.sampling().top_p(), start.seed(), start.index()};
  }
  int64_t row = 0;
  for (const v1::Entry& entry : plan.entries()) {
    Slot& slot = slots_[entry.slot()];
    int32_t* table = &tables_[entry.slot() * table_stride_];
    if (entry.block_ids_size() > 0) {
      std::copy(entry.block_ids().begin(), entry.block_ids().end(),
                table + entry.block_table_from());
      slot.table_length = entry.block_table_from() + entry.block_ids_size();
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
