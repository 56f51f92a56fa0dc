#include "worker/weights/row_packer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "model/cuda_packed_size.h"
#include "worker/weights/convert.h"
#include "worker/weights/finite.h"

namespace pergola {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

absl::Status NotFinite(const WeightItem& item, int64_t row, int64_t column) {
  const bool block = BlockValues(item.dtype()) > 1;
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", item.binding->tensor, " has a NaN or Inf at row ", row, ", ",
      block ? "in the block of column " : "column ", column, "; weights must be finite"));
}

// Of rows [first, first + count) of the cut, which lie together at `data` as in the file.
absl::Status CheckFinite(const WeightItem& item, int64_t first, int64_t count,
                         const uint8_t* data) {
  const int64_t block = BlockValues(item.dtype());
  const Range columns = item.read_columns();
  const int64_t begin = columns.begin / block * block;
  const int64_t end = (columns.end + block - 1) / block * block;
  // Rows that are held whole are one stretch of values.
  const bool whole = begin == 0 && end == item.tensor_columns;
  const int64_t stretches = whole ? 1 : count;
  const int64_t values = whole ? count * item.tensor_columns : end - begin;
  for (int64_t i = 0; i < stretches; ++i) {
    const uint8_t* source = data + i * item.row_bytes() + DTypeBytes(item.dtype(), begin);
    const int64_t bad = FirstNonFinite(item.dtype(), source, values);
    if (bad < 0) continue;
    return NotFinite(item, item.TensorRow(first) + i + bad / item.tensor_columns,
                     begin + bad % item.tensor_columns);
  }
  return absl::OkStatus();
}

absl::Status NotHeld(const WeightItem& item, const std::vector<float>& row, int64_t output,
                     int64_t column) {
  const bool group = BlockValues(item.held) > 1;
  int64_t at = column;
  // Of a group the largest value by size says why.
  for (int64_t k = column; group && k < std::min<int64_t>(column + 32, item.columns()); ++k) {
    if (std::abs(row[k]) > std::abs(row[at])) at = k;
  }
  const int64_t line = item.TensorRow(output);
  const bool turned = item.binding->transposed;
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", item.binding->tensor, " has ", row[at], " at row ", turned ? at : line,
      ", column ", turned ? line : at, ", which ", group ? "a group of " : "",
      ToAbsl(DTypeName(item.held)), " cannot hold; use --dtype auto or f32"));
}

// Whether rows of the file are rows of the image as they are.
bool ReadsInPlace(const WeightItem& item, const PackedShape& shape) {
  return !shape.panels && !item.converted() && BlockValues(item.dtype()) == 1 &&
         item.cut.columns.size() == item.tensor_columns &&
         item.binding->row_order == RowOrder::kPlain &&
         item.row_bytes() == CudaRowShapeOf(shape.dtype, shape.columns, shape.lead).stride;
}

// Makes rows of a GPU's image zeros where packing leaves bytes as they are: behind a row's values.
void Clear(const PackTarget& target, int64_t row, int64_t count) {
  const PackedShape& shape = target.shape;
  const int64_t stride = CudaRowShapeOf(shape.dtype, shape.columns, shape.lead).stride;
  if (BlockValues(shape.dtype) == 1 && DTypeBytes(shape.dtype, shape.columns) == stride) return;
  std::memset(target.image + (target.first_row + row) * stride, 0,
              static_cast<size_t>(count * stride));
}

}  // namespace

int64_t RowPacker::Step(const WeightItem& item, int64_t row, int64_t most) const {
  int64_t bytes = limits_.read_bytes, row_bytes = item.row_bytes();
  if (item.binding->transposed) {
    bytes = limits_.turned_bytes;
    row_bytes = DTypeBytes(item.dtype(), item.read_columns().size());
  }
  const int64_t unit = item.RowUnit(head_dim_);
  const int64_t step = std::max<int64_t>(1, bytes / (row_bytes * unit)) * unit;
  return item.Together(row, std::min(step, most));
}

absl::Status RowPacker::Read(const WeightItem& item, int64_t offset, absl::Span<uint8_t> out) {
  const Clock::time_point begin = Clock::now();
  absl::Status status = checkpoint_.Read(*item.tensor, offset, out);
  times_.read += SecondsSince(begin);
  if (status.ok()) return status;
  return Prefixed(status, ToStd(absl::StrCat("tensor ", item.binding->tensor)));
}

// Rows [begin, begin + count) of the cut, whole heads if the file has them interleaved.
std::vector<RowPacker::Run> RowPacker::RunsOf(RowOrder order, int64_t begin, int64_t count) const {
  if (order == RowOrder::kPlain) return {Run{begin, count, 0, 1}};
  std::vector<Run> runs;
  const int64_t half = head_dim_ / 2;
  for (int64_t head = 0; head < count / head_dim_; ++head) {
    // File row 2i + j is row i + j * half.
    runs.push_back(Run{begin + head * head_dim_, half, head * head_dim_, 2});
    runs.push_back(Run{begin + head * head_dim_ + half, half, head * head_dim_ + 1, 2});
  }
  return runs;
}

// A run of rows as they are in the file, or through f32 as they are held.
absl::Status RowPacker::PackRun(const WeightItem& item, const Run& run, const Chunk& chunk,
                                const PackTarget& target) {
  const int64_t first_row = target.first_row + run.first_row;
  if (!item.converted()) {
    const int64_t block = BlockValues(item.dtype());
    const int64_t begin = item.cut.columns.begin - chunk.first_column;
    pergola::PackRows(
        target.shape, first_row, run.count,
        chunk.data + run.source * chunk.row_bytes + begin / block * BlockBytes(item.dtype()),
        run.stride_rows * chunk.row_bytes, target.image);
    return absl::OkStatus();
  }
  const int64_t columns = item.columns();
  const int64_t out_bytes = ConvertedRowBytes(item.held, item.cut.columns);
  converted_.resize(run.count * out_bytes);
  row_.resize(columns);
  for (int64_t i = 0; i < run.count; ++i) {
    const int64_t row = run.source + i * run.stride_rows;
    DecodeToF32(item.dtype(), chunk.data + row * chunk.row_bytes, columns, row_.data());
    const int64_t bad = ConvertRow(row_.data(), columns, item.cut.columns, item.held,
                                   converted_.data() + i * out_bytes);
    if (bad >= 0) return NotHeld(item, row_, chunk.first + row, bad);
  }
  pergola::PackRows(target.shape, first_row, run.count, converted_.data(), out_bytes, target.image);
  return absl::OkStatus();
}

// The tensor is [inputs, outputs]: a stripe of each of its rows is read and dealt to the rows of
// the weight, which are packed once all are there.
absl::Status RowPacker::PackTransposed(const WeightItem& item, int64_t begin, int64_t count,
                                       const PackTarget& target) {
  const int64_t size = DTypeBytes(item.dtype(), 1);
  const Range read = item.read_columns();
  const int64_t columns = read.size();
  const int64_t stripe = count * size;
  turned_.resize(count * columns * size);
  // Some rows at a time, so that what is written to one row lies together.
  const int64_t step = std::max<int64_t>(1, limits_.read_bytes / 8 / stripe);
  chunk_.resize(step * stripe);
  for (int64_t first = 0; first < columns; first += step) {
    const int64_t inputs = std::min(step, columns - first);
    for (int64_t i = 0; i < inputs; ++i) {
      const int64_t offset =
          (read.begin + first + i) * item.row_bytes() + item.TensorRow(begin) * size;
      RETURN_IF_ERROR(Read(item, offset, absl::MakeSpan(chunk_.data() + i * stripe, stripe)));
    }
    for (int64_t row = 0; row < count; ++row) {
      const uint8_t* from = chunk_.data() + row * size;
      uint8_t* to = turned_.data() + (row * columns + first) * size;
      for (int64_t i = 0; i < inputs; ++i) {
        std::memcpy(to + i * size, from + i * stripe, static_cast<size_t>(size));
      }
    }
  }
  const int64_t bad = FirstNonFinite(item.dtype(), turned_.data(), count * columns);
  if (bad >= 0) {
    return NotFinite(item, read.begin + bad % columns, item.TensorRow(begin + bad / columns));
  }
  return PackRun(item, Run{begin, count, 0, 1},
                 Chunk{turned_.data(), columns * size, begin, read.begin}, target);
}

absl::Status RowPacker::PackRows(const WeightItem& item, int64_t begin, int64_t count,
                                 const PackTarget& target) {
  const Clock::time_point started = Clock::now();
  const double read_before = times_.read;
  absl::Status status = [&]() -> absl::Status {
    if (!target.cleared) Clear(target, begin, count);
    if (item.binding->transposed) return PackTransposed(item, begin, count, target);
    const int64_t bytes = count * item.row_bytes();
    const bool in_place = ReadsInPlace(item, target.shape);
    if (!in_place && static_cast<int64_t>(chunk_.size()) < bytes) chunk_.resize(bytes);
    uint8_t* data =
        in_place ? target.image + (target.first_row + begin) * item.row_bytes() : chunk_.data();
    RETURN_IF_ERROR(
        Read(item, item.TensorRow(begin) * item.row_bytes(), absl::MakeSpan(data, bytes)));
    RETURN_IF_ERROR(CheckFinite(item, begin, count, data));
    if (in_place) return absl::OkStatus();
    const Chunk chunk{data, item.row_bytes(), begin, 0};
    for (const Run& run : RunsOf(item.binding->row_order, begin, count)) {
      RETURN_IF_ERROR(PackRun(item, run, chunk, target));
    }
    return absl::OkStatus();
  }();
  times_.convert += SecondsSince(started) - (times_.read - read_before);
  return status;
}

absl::Status RowPacker::PackVector(const WeightItem& item, bool plus_one, float* to) {
  for (int64_t row = 0; row < item.rows();) {
    const int64_t count = item.Together(row, item.rows());
    const int64_t bytes = count * item.row_bytes();
    if (static_cast<int64_t>(chunk_.size()) < bytes) chunk_.resize(bytes);
    RETURN_IF_ERROR(
        Read(item, item.TensorRow(row) * item.row_bytes(), absl::MakeSpan(chunk_.data(), bytes)));
    RETURN_IF_ERROR(CheckFinite(item, row, count, chunk_.data()));
    for (const Run& run : RunsOf(item.binding->row_order, row, count)) {
      for (int64_t i = 0; i < run.count; ++i) {
        const int64_t source = run.source + i * run.stride_rows;
        float* value = to + run.first_row + i;
        DecodeToF32(item.dtype(), chunk_.data() + source * item.row_bytes(), 1, value);
        if (plus_one) *value += 1;
      }
    }
    row += count;
  }
  return absl::OkStatus();
}

}  // namespace pergola
