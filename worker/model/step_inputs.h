// What a step tells the device: where its rows stand, their ids, and how the block tables changed.
// On the CPU the host's arrays are the device's; on a GPU they travel in one copy from pinned
// memory, and the block tables live on the device, so that a step sends only what is new.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/attention_work.h"
#include "kernels/stream.h"
#include "worker/model/decoder.h"

namespace pergola {

// Entries [first, first + count) of table `table` have new block ids.
struct TableChange {
  int32_t table = 0;
  int32_t first = 0;
  int32_t count = 0;
};

class StepInputs {
 public:
  // For steps of up to `step_rows` rows over `tables` block tables of `table_stride` blocks.
  // `context_length` > 0: steps that only decode are padded to the shapes of StepGraphs.
  StepInputs(Stream& stream, int64_t step_rows, int64_t tables, int64_t table_stride,
             int64_t context_length);

  // What the constructor allocated of the device's memory.
  int64_t bytes() const { return mirror_.size() + tables_.size(); }
  // And of the host's.
  int64_t pinned_bytes() const { return staged_[0].size() + staged_[1].size(); }

  // `rows` as the slot table gives them and the `ids` of the rows (none where they are not read),
  // enqueued; valid on the device until what the next call enqueues. The stream has done what the
  // call before the last enqueued. An id may be TokenOfEntry(e) (kernels/decoder_ops.h): then
  // `tokens`, by entry, is where the device finds it.
  struct Uploaded {
    StepRows rows;
    const int32_t* ids = nullptr;
    bool padded = false;  // to a shape of StepGraphs
  };
  Uploaded Upload(const StepRows& rows, absl::Span<const int32_t> ids,
                  absl::Span<const TableChange> changes, const int32_t* tokens = nullptr);

 private:
  // The parts of a step's message, each as long as a step may make it.
  struct Parts {
    int64_t* slot_of_row = nullptr;
    int32_t* ids = nullptr;
    int32_t* positions = nullptr;
    int32_t* table_of_row = nullptr;
    // Single new blocks: index in the tables, block id.
    int32_t* changed_at = nullptr;
    int32_t* changed_to = nullptr;
    int32_t* decode_rows = nullptr;
    int32_t* prefill_tiles = nullptr;  // two of each tile
  };
  static Parts Cut(uint8_t* memory, int64_t step_rows);
  // Puts the new block ids on their way: single ones into the message (their number is returned),
  // runs in copies of their own.
  int64_t StageChanges(absl::Span<const TableChange> changes, const int32_t* tables,
                       const Parts& staged, int32_t* runs);
  // Fills the rows from `count` on with rows of nothing.
  static void Pad(const Parts& parts, int64_t count, int64_t padded);

  Stream& stream_;
  const int64_t step_rows_;
  const int64_t table_stride_;
  const int64_t context_length_;
  AttentionPlan attention_;
  // Pinned, used in turn: the message, then runs of block ids as long as all tables.
  std::array<DeviceBuffer, 2> staged_;
  size_t turn_ = 0;
  DeviceBuffer mirror_;  // what the message held at the last Upload
  DeviceBuffer tables_;  // [tables, table_stride] i32
};

}  // namespace pergola
