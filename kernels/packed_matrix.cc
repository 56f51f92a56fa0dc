#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/matrix_layout.h"
#include "kernels/int8.h"
#include "kernels/matmul.h"
#include "kernels/packed_layout.h"

namespace pergola {
namespace {

// Rows are written in pieces of this many k, so that the lines of a panel that neighbouring rows
// share stay in L1.
constexpr int64_t kPieceK = 64;
// Of q6_k, the largest.
constexpr int64_t kMaxBlockBytes = 210;
constexpr int64_t kMaxBlockValues = 256;

uint16_t LoadU16(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}

// Values k_begin..k_end of one dense row into its lane of the panel.
void PackDense(DType dtype, uint8_t* panel, int64_t lane, const uint8_t* row, int64_t k_begin,
               int64_t k_end) {
  if (dtype == DType::kF32) {
    for (int64_t k = k_begin; k < k_end; ++k) {
      std::memcpy(panel + (k * kPanelColumns + lane) * 4, row + k * 4, 4);
    }
  } else if (dtype == DType::kF16) {
    for (int64_t k = k_begin; k < k_end; ++k) {
      std::memcpy(panel + (k * kPanelColumns + lane) * 2, row + k * 2, 2);
    }
  } else {
    for (int64_t k = k_begin; k < k_end; ++k) {
      std::memcpy(panel + ((k / 2 * kPanelColumns + lane) * 2 + k % 2) * 2, row + k * 2, 2);
    }
  }
}

// Calls visit(offset in the file's block, offset in the (panel, block), bytes) for every unit that
// a lane holds of a block.
template <typename Visit>
void ForEachUnit(DType dtype, int64_t lane, Visit visit) {
  const BlockHalves halves = HalvesOf(dtype);
  for (int64_t i = 0; i < halves.count; ++i) {
    visit(halves.offset + 2 * i, 2 * (i * kPanelColumns + lane), 2);
  }
  const int64_t words_begin = halves.offset == 0 ? 2 * halves.count : 0;
  const int64_t words = (BlockBytes(dtype) - 2 * halves.count) / 4;
  const int64_t header = QuantHeaderBytes(dtype);
  for (int64_t i = 0; i < words; ++i) {
    visit(words_begin + 4 * i, header + 4 * (i * kPanelColumns + lane), 4);
  }
}

// One block of the file into its lane of a (panel, block).
void PackQuantBlock(DType dtype, uint8_t* target, int64_t lane, const uint8_t* block) {
  ForEachUnit(dtype, lane, [=](int64_t from, int64_t to, size_t bytes) {
    std::memcpy(target + to, block + from, bytes);
  });
}

// A row of an int8 matrix, its scale and then its values, into its lane of the panel.
void PackInt8Row(uint8_t* panel, int64_t lane, const uint8_t* row, int64_t columns) {
  std::memcpy(panel + 4 * lane, row, 4);
  const uint8_t* values = row + 4;
  int32_t sum = 0;
  for (int64_t k = 0; k < columns; ++k) {
    sum += static_cast<int8_t>(values[k]);
    panel[kInt8HeaderBytes + (k / 4 * kPanelColumns + lane) * 4 + k % 4] = values[k];
  }
  std::memcpy(panel + 4 * (kPanelColumns + lane), &sum, 4);
}

// The inverse of PackQuantBlock, decoded: the values of one lane.
void UnpackQuantBlock(DType dtype, const uint8_t* source, int64_t lane, float* out) {
  uint8_t block[kMaxBlockBytes];
  ForEachUnit(dtype, lane, [&](int64_t to, int64_t from, size_t bytes) {
    std::memcpy(block + to, source + from, bytes);
  });
  DecodeToF32(dtype, block, BlockValues(dtype), out);
}

}  // namespace

int64_t PackedMatrix::PackedBytes(DType dtype, int64_t rows, int64_t columns, int lead) {
  return PackedMatrixBytes(dtype, rows, columns, lead);
}

PackedMatrix::PackedMatrix(DType dtype, int64_t rows, int64_t columns, int lead, bool panels)
    : dtype_(dtype), rows_(rows), columns_(columns), lead_(lead), panels_(panels) {
  PERGOLA_CHECK(dtype != DType::kI32);
  PERGOLA_CHECK_MSG(!panels || dtype != DType::kFp8, "fp8 is for GPUs");
  PERGOLA_CHECK(rows >= 0 && columns >= 0);
  PERGOLA_CHECK(lead >= 0 && lead < BlockValues(dtype));
  PERGOLA_CHECK(dtype != DType::kInt8 || columns <= kMostInt8Columns);
  buffer_ = HostBuffer(panels ? PackedBytes(dtype, rows, columns, lead)
                              : CudaMatrixBytes(dtype, rows, columns, lead));
}

PackedMatrix PackedMatrix::Allocate(DType dtype, int64_t rows, int64_t columns, int lead) {
  return PackedMatrix(dtype, rows, columns, lead, /*panels=*/true);
}

PackedMatrix PackedMatrix::Allocate(Stream& stream, DType dtype, int64_t rows, int64_t columns,
                                    int lead) {
  return PackedMatrix(dtype, rows, columns, lead, stream.device() == Device::kCpu);
}

void PackedMatrix::Upload(Stream& stream) {
  if (panels_) return;
  device_ = DeviceBuffer(stream, buffer_.size());
  stream.CopyToDevice(device_.data(), buffer_.data(), buffer_.size());
  // An error stays with the stream.
  static_cast<void>(stream.Synchronize());
  buffer_ = HostBuffer();
}

void PackedMatrix::PackRows(int64_t first_row, int64_t row_count, const void* source,
                            int64_t source_row_bytes) {
  PERGOLA_CHECK(first_row >= 0 && row_count >= 0 && first_row + row_count <= rows_);
  if (!panels_) {
    const CudaMatrix matrix{dtype_, rows_, columns_, lead_, nullptr};
    return PackCudaRows(matrix, first_row, row_count, source, source_row_bytes, buffer_.data());
  }
  const auto* rows = static_cast<const uint8_t*>(source);
  if (dtype_ == DType::kInt8) {
    for (int64_t i = 0; i < row_count; ++i) {
      const int64_t row = first_row + i;
      PackInt8Row(buffer_.data() + row / kPanelColumns * PanelBytes(dtype_, columns_, lead_),
                  row % kPanelColumns, rows + i * source_row_bytes, columns_);
    }
    return;
  }
  const int64_t panel_bytes = PanelBytes(dtype_, columns_, lead_);
  const int64_t block = BlockValues(dtype_);
  const int64_t piece = std::max(kPieceK, block);
  const bool quantised = block > 1;
  const int64_t covered = quantised ? StoredK(dtype_, columns_, lead_) : columns_;
  for (int64_t begin = 0; begin < row_count;) {
    // The rows of one panel together, a piece of K at a time.
    const int64_t row = first_row + begin;
    const int64_t panel_end = (row / kPanelColumns + 1) * kPanelColumns;
    const int64_t end = std::min(row_count, panel_end - first_row);
    uint8_t* panel = buffer_.data() + row / kPanelColumns * panel_bytes;
    for (int64_t k = 0; k < covered; k += piece) {
      const int64_t k_end = std::min(k + piece, covered);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t lane = (first_row + i) % kPanelColumns;
        const uint8_t* from = rows + i * source_row_bytes;
        if (!quantised) {
          PackDense(dtype_, panel, lane, from, k, k_end);
          continue;
        }
        for (int64_t b = k / block; b * block < k_end; ++b) {
          PackQuantBlock(dtype_, panel + b * QuantPanelBlockBytes(dtype_), lane,
                         from + b * BlockBytes(dtype_));
        }
      }
    }
    begin = end;
  }
}

void PackedMatrix::UnpackRow(int64_t row, float* out) const {
  PERGOLA_CHECK(panels_ && row >= 0 && row < rows_);
  const int64_t lane = row % kPanelColumns;
  const uint8_t* panel = buffer_.data() + row / kPanelColumns * PanelBytes(dtype_, columns_, lead_);
  if (const int64_t block = BlockValues(dtype_); block > 1) {
    float values[kMaxBlockValues];
    for (int64_t k = 0; k < lead_ + columns_; k += block) {
      UnpackQuantBlock(dtype_, panel + k / block * QuantPanelBlockBytes(dtype_), lane, values);
      const int64_t skip = std::max<int64_t>(lead_ - k, 0);
      const int64_t end = std::min(block, lead_ + columns_ - k);
      for (int64_t i = skip; i < end; ++i) out[k + i - lead_] = values[i];
    }
    return;
  }
  if (dtype_ == DType::kInt8) {
    std::vector<int8_t> values(static_cast<size_t>(columns_));
    const float scale = Int8Row(row, values.data());
    for (int64_t k = 0; k < columns_; ++k) out[k] = scale * static_cast<float>(values[k]);
    return;
  }
  for (int64_t k = 0; k < columns_; ++k) {
    if (dtype_ == DType::kF32) {
      std::memcpy(out + k, panel + (k * kPanelColumns + lane) * 4, 4);
    } else if (dtype_ == DType::kF16) {
      out[k] = F16ToF32(LoadU16(panel + (k * kPanelColumns + lane) * 2));
    } else {
      out[k] = BF16ToF32(LoadU16(panel + ((k / 2 * kPanelColumns + lane) * 2 + k % 2) * 2));
    }
  }
}

float PackedMatrix::Int8Row(int64_t row, int8_t* out) const {
  PERGOLA_CHECK(panels_ && dtype_ == DType::kInt8 && row >= 0 && row < rows_);
  const int64_t lane = row % kPanelColumns;
  const uint8_t* panel = buffer_.data() + row / kPanelColumns * PanelBytes(dtype_, columns_, lead_);
  for (int64_t k = 0; k < columns_; ++k) {
    const uint8_t* value = panel + kInt8HeaderBytes + (k / 4 * kPanelColumns + lane) * 4 + k % 4;
    out[k] = static_cast<int8_t>(*value);
  }
  float scale;
  std::memcpy(&scale, panel + 4 * lane, 4);
  return scale;
}

}  // namespace pergola
