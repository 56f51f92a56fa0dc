#include "worker/model/step_inputs.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/decoder_ops.h"
#include "model/memory_plan.h"
#include "worker/model/step_graphs.h"

namespace pergola {
namespace {

constexpr int64_t kWord = sizeof(int32_t);
// Parts has one value of eight bytes and eight of four; the plan knows their sum.
static_assert(kStepInputRowBytes == 8 + 8 * kWord);

}  // namespace

StepInputs::StepInputs(Stream& stream, int64_t step_rows, int64_t tables, int64_t table_stride,
                       int64_t context_length)
    : stream_(stream),
      step_rows_(step_rows),
      table_stride_(table_stride),
      context_length_(context_length) {
  if (stream.device() == Device::kCpu) return;
  const int64_t table_bytes = tables * table_stride * kWord;
  for (DeviceBuffer& staged : staged_) {
    staged = DeviceBuffer(stream, step_rows * kStepInputRowBytes + table_bytes, Place::kPinned);
  }
  attention_.decode_rows.reserve(step_rows);
  attention_.prefill_tiles.reserve(2 * step_rows);
  mirror_ = DeviceBuffer(stream, step_rows * kStepInputRowBytes);
  tables_ = DeviceBuffer(stream, table_bytes);
}

StepInputs::Parts StepInputs::Cut(uint8_t* memory, int64_t step_rows) {
  Parts parts;
  parts.slot_of_row = reinterpret_cast<int64_t*>(memory);
  auto* words = reinterpret_cast<int32_t*>(memory + step_rows * 8);
  for (int32_t** part : {&parts.ids, &parts.positions, &parts.table_of_row, &parts.changed_at,
                         &parts.changed_to, &parts.decode_rows, &parts.prefill_tiles}) {
    *part = words;
    words += step_rows;
  }
  return parts;
}

void StepInputs::Pad(const Parts& parts, int64_t count, int64_t padded) {
  std::fill(parts.slot_of_row + count, parts.slot_of_row + padded, 0);
  std::fill(parts.table_of_row + count, parts.table_of_row + padded, 0);
  for (int32_t* part : {parts.ids, parts.positions, parts.decode_rows}) {
    std::fill(part + count, part + padded, -1);
  }
}

int64_t StepInputs::StageChanges(absl::Span<const TableChange> changes, const int32_t* tables,
                                 const Parts& staged, int32_t* runs) {
  int64_t single = 0;
  for (const TableChange& change : changes) {
    const int64_t at = change.table * table_stride_ + change.first;
    if (change.count == 1 && single < step_rows_) {
      staged.changed_at[single] = static_cast<int32_t>(at);
      staged.changed_to[single++] = tables[at];
      continue;
    }
    std::copy_n(tables + at, change.count, runs);
    stream_.CopyToDevice(tables_.data() + at * kWord, runs, change.count * kWord);
    runs += change.count;
  }
  return single;
}

StepInputs::Uploaded StepInputs::Upload(const StepRows& rows, absl::Span<const int32_t> ids,
                                        absl::Span<const TableChange> changes,
                                        const int32_t* tokens) {
  if (stream_.device() == Device::kCpu) return {rows, ids.data(), false};
  PERGOLA_CHECK(rows.count <= step_rows_ && rows.table_stride == table_stride_);
  PERGOLA_CHECK(ids.empty() || static_cast<int64_t>(ids.size()) == rows.count);
  turn_ = 1 - turn_;
  uint8_t* memory = staged_[turn_].data();
  const int64_t message_bytes = step_rows_ * kStepInputRowBytes;
  const Parts staged = Cut(memory, step_rows_);
  std::copy_n(rows.slot_of_row, rows.count, staged.slot_of_row);
  std::copy(ids.begin(), ids.end(), staged.ids);
  std::copy_n(rows.positions, rows.count, staged.positions);
  std::copy_n(rows.table_of_row, rows.count, staged.table_of_row);
  const int64_t single = StageChanges(changes, rows.block_tables, staged,
                                      reinterpret_cast<int32_t*>(memory + message_bytes));
  PlanAttention(rows.positions, rows.table_of_row, rows.count, &attention_);
  std::copy(attention_.decode_rows.begin(), attention_.decode_rows.end(), staged.decode_rows);
  std::copy(attention_.prefill_tiles.begin(), attention_.prefill_tiles.end(), staged.prefill_tiles);
  const bool decodes =
      rows.count > 0 && static_cast<int64_t>(attention_.decode_rows.size()) == rows.count;
  const bool pads = context_length_ > 0 && decodes;
  const int64_t padded = pads ? StepGraphs::PaddedRows(rows.count, step_rows_) : rows.count;
  if (pads) Pad(staged, rows.count, padded);
  stream_.CopyToDevice(mirror_.data(), memory, message_bytes);
  const Parts mirror = Cut(mirror_.data(), step_rows_);
  auto* tables = reinterpret_cast<int32_t*>(tables_.data());
  if (single > 0) {
    Scatter(stream_, ScatterArgs{mirror.changed_at, mirror.changed_to, single, tables});
  }
  if (tokens != nullptr) TakeTokens(stream_, TakeTokensArgs{mirror.ids, tokens, rows.count});
  Uploaded uploaded;
  uploaded.padded = pads;
  uploaded.rows = rows;
  uploaded.rows.count = padded;
  uploaded.rows.positions = mirror.positions;
  uploaded.rows.slot_of_row = mirror.slot_of_row;
  uploaded.rows.table_of_row = mirror.table_of_row;
  uploaded.rows.block_tables = tables;
  AttentionWork& work = uploaded.rows.attention;
  work.prefill_tiles = mirror.prefill_tiles;
  work.prefill_tile_count = static_cast<int64_t>(attention_.prefill_tiles.size()) / 2;
  work.longest_prompt = attention_.longest_prompt;
  work.decode_rows = mirror.decode_rows;
  work.decode_row_count = pads ? padded : static_cast<int64_t>(attention_.decode_rows.size());
  work.longest_context =
      pads ? StepGraphs::PaddedContext(attention_.longest_context, context_length_)
           : attention_.longest_context;
  uploaded.ids = mirror.ids;
  return uploaded;
}

}  // namespace pergola
