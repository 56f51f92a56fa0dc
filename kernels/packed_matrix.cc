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

// Values k_begin..k_end of one dense row into its lane of the panel. k_begin is even.
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
    int64_t k = k_begin;
    for (; k + 2 <= k_end; k += 2) {
      std::memcpy(panel + (k / 2 * kPanelColumns + lane) * 4, row + k * 2, 4);
    }
    if (k < k_end) std::memcpy(panel + (k / 2 * kPanelColumns + lane) * 4, row + k * 2, 2);
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
  for (int64_t k = 0; k < columns; ++k) sum += static_cast<int8_t>(values[k]);
  for (int64_t k = 0; k < columns; k += 4) {
    std::memcpy(panel + kInt8HeaderBytes + (k / 4 * kPanelColumns + lane) * 4, values + k,
                static_cast<size_t>(std::min<int64_t>(4, columns - k)));
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

int64_t PackedShape::bytes() const {
  return panels ? PackedMatrixBytes(dtype, rows, columns, lead)
                : CudaMatrixBytes(dtype, rows, columns, lead);
}

PackedMatrix::PackedMatrix(const PackedShape& shape) : shape_(shape) {
  PERGOLA_CHECK(shape.dtype != DType::kI32);
  PERGOLA_CHECK(shape.rows >= 0 && shape.columns >= 0);
  PERGOLA_CHECK(shape.lead >= 0 && shape.lead < BlockValues(shape.dtype));
  PERGOLA_CHECK(shape.dtype != DType::kInt8 || shape.columns <= kMostInt8Columns);
  PERGOLA_CHECK_MSG(!shape.panels || shape.dtype != DType::kFp8, "fp8 is for GPUs");
}

PackedMatrix PackedMatrix::Allocate(DType dtype, int64_t rows, int64_t columns, int lead) {
  PackedMatrix matrix(PackedShape{dtype, rows, columns, lead, true});
  matrix.buffer_ = HostBuffer(matrix.shape_.bytes());
  return matrix;
}

PackedMatrix PackedMatrix::Allocate(Stream& stream, DType dtype, int64_t rows, int64_t columns,
                                    int lead) {
  if (stream.device() == Device::kCpu) return Allocate(dtype, rows, columns, lead);
  PackedMatrix matrix(PackedShape{dtype, rows, columns, lead, false});
  matrix.device_ = DeviceBuffer(stream, matrix.shape_.bytes());
  return matrix;
}

void PackedMatrix::PackRows(int64_t first_row, int64_t row_count, const void* source,
                            int64_t source_row_bytes) {
  PERGOLA_CHECK(shape_.panels);
  pergola::PackRows(shape_, first_row, row_count, source, source_row_bytes, buffer_.data());
}

void PackRows(const PackedShape& shape, int64_t first_row, int64_t row_count, const void* source,
              int64_t source_row_bytes, uint8_t* image) {
  PERGOLA_CHECK(first_row >= 0 && row_count >= 0 && first_row + row_count <= shape.rows);
  const auto [dtype, all_rows, columns, lead, panels] = shape;
  if (!panels) {
    const CudaMatrix matrix{dtype, all_rows, columns, lead, nullptr};
    return PackCudaRows(matrix, first_row, row_count, source, source_row_bytes, image);
  }
  const auto* rows = static_cast<const uint8_t*>(source);
  const int64_t panel_bytes = PanelBytes(dtype, columns, lead);
  if (dtype == DType::kInt8) {
    for (int64_t i = 0; i < row_count; ++i) {
      const int64_t row = first_row + i;
      PackInt8Row(image + row / kPanelColumns * panel_bytes, row % kPanelColumns,
                  rows + i * source_row_bytes, columns);
    }
    return;
  }
  const int64_t block = BlockValues(dtype);
  const int64_t piece = std::max(kPieceK, block);
  const bool quantised = block > 1;
  const int64_t covered = quantised ? StoredK(dtype, columns, lead) : columns;
  for (int64_t begin = 0; begin < row_count;) {
    // The rows of one panel together, a piece of K at a time.
    const int64_t row = first_row + begin;
    const int64_t panel_end = (row / kPanelColumns + 1) * kPanelColumns;
    const int64_t end = std::min(row_count, panel_end - first_row);
    uint8_t* panel = image + row / kPanelColumns * panel_bytes;
    for (int64_t k = 0; k < covered; k += piece) {
      const int64_t k_end = std::min(k + piece, covered);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t lane = (first_row + i) % kPanelColumns;
        const uint8_t* from = rows + i * source_row_bytes;
        if (!quantised) {
          PackDense(dtype, panel, lane, from, k, k_end);
          continue;
        }
        for (int64_t b = k / block; b * block < k_end; ++b) {
          PackQuantBlock(dtype, panel + b * QuantPanelBlockBytes(dtype), lane,
                         from + b * BlockBytes(dtype));
        }
      }
    }
    begin = end;
  }
}

void PackedMatrix::UnpackRow(int64_t row, float* out) const {
  PERGOLA_CHECK(shape_.panels && row >= 0 && row < shape_.rows);
  const int64_t lane = row % kPanelColumns;
  const uint8_t* panel =
      buffer_.data() + row / kPanelColumns * PanelBytes(shape_.dtype, shape_.columns, shape_.lead);
  if (const int64_t block = BlockValues(shape_.dtype); block > 1) {
    float values[kMaxBlockValues];
    for (int64_t k = 0; k < shape_.lead + shape_.columns; k += block) {
      UnpackQuantBlock(shape_.dtype, panel + k / block * QuantPanelBlockBytes(shape_.dtype), lane,
                       values);
      const int64_t skip = std::max<int64_t>(shape_.lead - k, 0);
      const int64_t end = std::min(block, shape_.lead + shape_.columns - k);
      for (int64_t i = skip; i < end; ++i) out[k + i - shape_.lead] = values[i];
    }
    return;
  }
  if (shape_.dtype == DType::kInt8) {
    std::vector<int8_t> values(static_cast<size_t>(shape_.columns));
    const float scale = Int8Row(row, values.data());
    for (int64_t k = 0; k < shape_.columns; ++k) out[k] = scale * static_cast<float>(values[k]);
    return;
  }
  for (int64_t k = 0; k < shape_.columns; ++k) {
    if (shape_.dtype == DType::kF32) {
      std::memcpy(out + k, panel + (k * kPanelColumns + lane) * 4, 4);
    } else if (shape_.dtype == DType::kF16) {
      out[k] = F16ToF32(LoadU16(panel + (k * kPanelColumns + lane) * 2));
    } else {
      out[k] = BF16ToF32(LoadU16(panel + ((k / 2 * kPanelColumns + lane) * 2 + k % 2) * 2));
    }
  }
}

float PackedMatrix::Int8Row(int64_t row, int8_t* out) const {
  PERGOLA_CHECK(shape_.panels && shape_.dtype == DType::kInt8 && row >= 0 && row < shape_.rows);
  const int64_t lane = row % kPanelColumns;
  const uint8_t* panel =
      buffer_.data() + row / kPanelColumns * PanelBytes(shape_.dtype, shape_.columns, shape_.lead);
  for (int64_t k = 0; k < shape_.columns; ++k) {
    const uint8_t* value = panel + kInt8HeaderBytes + (k / 4 * kPanelColumns + lane) * 4 + k % 4;
    out[k] = static_cast<int8_t>(*value);
  }
  float scale;
  std::memcpy(&scale, panel + 4 * lane, 4);
  return scale;
}

}  // namespace pergola
