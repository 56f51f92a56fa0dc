#include "kernels/cuda/matrix_layout.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "model/packed_size.h"

namespace pergola {
namespace {

constexpr int64_t kMaxBlockBytes = 210;  // of q6_k
constexpr int64_t kMaxBlockValues = 256;
constexpr int kLanes = 4;
constexpr uint64_t kBytes = 0x0101010101010101;

// Where the file keeps `bits` bits of value i of a block: the bytes of neighbouring values lie
// side by side with the same shift, as far as an octet needs them.
struct Place {
  int64_t byte;
  int shift;
};

Place LowPlace(DType dtype, int64_t i) {
  const auto shift = [](int64_t n) { return static_cast<int>(n); };
  switch (dtype) {
    case DType::kQ8_0:
      return {2 + i, 0};
    case DType::kQ2_K:
      return {16 + i / 128 * 32 + i % 32, shift(i % 128 / 32 * 2)};
    case DType::kQ3_K:
      return {32 + i / 128 * 32 + i % 32, shift(i % 128 / 32 * 2)};
    case DType::kQ4_K:
      return {16 + i / 64 * 32 + i % 32, shift(i / 32 % 2 * 4)};
    case DType::kQ5_K:
      return {48 + i / 64 * 32 + i % 32, shift(i / 32 % 2 * 4)};
    case DType::kQ6_K:
      return {i / 128 * 64 + i % 64, shift(i % 128 / 64 * 4)};
    default: {
      const bool fifth = dtype == DType::kQ5_0 || dtype == DType::kQ5_1;
      const int64_t header = CudaBlockFormatOf(dtype).half_bytes + (fifth ? 4 : 0);
      return {header + i % 16, shift(i / 16 * 4)};
    }
  }
}

// q5_0 and q5_1 have these bits side by side instead, those of an octet in one byte.
bool HighBitsShareAByte(DType dtype) {
  return dtype == DType::kQ5_0 || dtype == DType::kQ5_1;
}

Place HighPlace(DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kQ3_K:
      return {i % 32, static_cast<int>(i / 32)};
    case DType::kQ5_K:
      return {16 + i % 32, static_cast<int>(i / 32)};
    case DType::kQ6_K:
      return {128 + i / 128 * 32 + i % 32, static_cast<int>(i % 128 / 32 * 2)};
    default:
      return {CudaBlockFormatOf(dtype).half_bytes + i / 8, 0};
  }
}

// The small scales of a K-quant block in the file.
int64_t SmallPlace(DType dtype) {
  return dtype == DType::kQ3_K ? 96 : dtype == DType::kQ6_K ? 192 : 0;
}

// Its f16 numbers that the layout keeps apart.
int64_t HalvesPlace(DType dtype) {
  return dtype == DType::kQ2_K ? 80 : dtype == DType::kQ3_K ? 108 : dtype == DType::kQ6_K ? 208 : 0;
}

// Value 0 of octet t in chunk p of a block, and value 4.
struct OctetPlace {
  int64_t first, second;
};
OctetPlace OctetOf(const CudaBlockFormat& format, int64_t chunk, int64_t t) {
  if (format.sub == 32) return {32 * chunk + 8 * t, 32 * chunk + 8 * t + 4};
  return {32 * chunk + 4 * t, 32 * chunk + 16 + 4 * t};
}

// A byte for each of the eight values: `bits` bits of it.
uint64_t GatherOctet(const uint8_t* block, Place first, Place second, int bits) {
  uint32_t low, high;
  std::memcpy(&low, block + first.byte, 4);
  std::memcpy(&high, block + second.byte, 4);
  const uint64_t mask = kBytes * ((1U << bits) - 1);
  return ((static_cast<uint64_t>(high) >> second.shift) << 32 | low >> first.shift) & mask;
}

void ScatterOctet(uint64_t octet, Place first, Place second, uint8_t* block) {
  for (int j = 0; j < 8; ++j) {
    const Place& place = j < 4 ? first : second;
    const auto value = static_cast<uint8_t>(octet >> 8 * j & 0xff);
    block[place.byte + j % 4] |= static_cast<uint8_t>(value << place.shift);
  }
}

// Bit at which an octet of `bits` keeps value j.
int BitOf(int bits, int j) {
  return bits == 8 ? 8 * j : (j % 2) * 4 * bits + j / 2 * bits;
}

// Packs the values of four bytes two apart, `bits` each, side by side.
uint64_t CompressEven(uint64_t octet, int bits) {
  constexpr uint64_t kBothWords = 0x0000000100000001;
  uint64_t v = octet & 0x0001000100010001 * ((1U << bits) - 1);
  v = (v | v >> (16 - bits)) & kBothWords * ((1U << 2 * bits) - 1);
  return (v | v >> (32 - 2 * bits)) & ((1U << 4 * bits) - 1);
}

uint64_t CompressOctet(uint64_t octet, int bits) {
  if (bits == 8) return octet;
  return CompressEven(octet, bits) | CompressEven(octet >> 8, bits) << 4 * bits;
}

uint64_t ExpandOctet(uint64_t packed, int bits) {
  if (bits == 8) return packed;
  uint64_t octet = 0;
  const uint64_t mask = (1U << bits) - 1;
  for (int j = 0; j < 8; ++j) octet |= (packed >> BitOf(bits, j) & mask) << 8 * j;
  return octet;
}

// Where octet t of chunk p of a unit begins in the unit's bytes of a section of `bits`.
int64_t OctetByte(const CudaBlockFormat& format, int bits, int64_t chunk, int t) {
  const int64_t lane_bytes = int64_t{format.unit} / 32 * bits;
  const int64_t piece = std::min<int64_t>(lane_bytes, 16);
  const int64_t at = chunk * bits;
  return at / piece * piece * kLanes + t * piece + at % piece;
}

// Calls visit(block number in the unit, chunk in the block, t, chunk in the unit).
template <typename Visit>
void ForEachOctet(const CudaBlockFormat& format, int64_t block, Visit visit) {
  const int64_t values = format.unit == 256 ? 256 : 32;
  const int64_t blocks_per_unit = format.unit / values;
  for (int64_t chunk = 0; chunk < values / 32; ++chunk) {
    for (int t = 0; t < kLanes; ++t) {
      visit(chunk, t, block % blocks_per_unit * (values / 32) + chunk);
    }
  }
}

// The bytes of a section's unit that holds block `block`.
int64_t UnitByte(const CudaBlockFormat& format, int bits, int64_t block) {
  const int64_t values = format.unit == 256 ? 256 : 32;
  return block * values / format.unit * (int64_t{format.unit} * bits / 8);
}

// The dtype is a template parameter so that all places are constants: packing is the host's share
// of loading a model.
template <DType kD>
void PackBlock(const CudaRowShape& shape, int64_t block, const uint8_t* from, uint8_t* row) {
  constexpr CudaBlockFormat kFormat = CudaBlockFormatOf(kD);
  uint8_t* low = row + UnitByte(kFormat, kFormat.low_bits, block);
  uint8_t* high = row + shape.high + UnitByte(kFormat, kFormat.high_bits, block);
  ForEachOctet(kFormat, block, [&](int64_t chunk, int t, int64_t unit_chunk) {
    const OctetPlace at = OctetOf(kFormat, chunk, t);
    const uint64_t bits = CompressOctet(
        GatherOctet(from, LowPlace(kD, at.first), LowPlace(kD, at.second), kFormat.low_bits),
        kFormat.low_bits);
    std::memcpy(low + OctetByte(kFormat, kFormat.low_bits, unit_chunk, t), &bits,
                static_cast<size_t>(kFormat.low_bits));
    if (kFormat.high_bits == 0) return;
    uint64_t octet = 0;
    if (HighBitsShareAByte(kD)) {
      const uint8_t byte = from[HighPlace(kD, at.first).byte];
      for (int j = 0; j < 8; ++j) octet |= static_cast<uint64_t>(byte >> j & 1) << 8 * j;
    } else {
      octet =
          GatherOctet(from, HighPlace(kD, at.first), HighPlace(kD, at.second), kFormat.high_bits);
    }
    const uint64_t packed = CompressOctet(octet, kFormat.high_bits);
    std::memcpy(high + OctetByte(kFormat, kFormat.high_bits, unit_chunk, t), &packed,
                static_cast<size_t>(kFormat.high_bits));
  });
  std::memcpy(row + shape.small + block * kFormat.small_bytes, from + SmallPlace(kD),
              static_cast<size_t>(kFormat.small_bytes));
  std::memcpy(row + shape.halves + block * kFormat.half_bytes, from + HalvesPlace(kD),
              static_cast<size_t>(kFormat.half_bytes));
}

using PackBlockFunction = void (*)(const CudaRowShape&, int64_t, const uint8_t*, uint8_t*);
PackBlockFunction PackBlockOf(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return PackBlock<DType::kQ8_0>;
    case DType::kQ4_0:
      return PackBlock<DType::kQ4_0>;
    case DType::kQ4_1:
      return PackBlock<DType::kQ4_1>;
    case DType::kQ5_0:
      return PackBlock<DType::kQ5_0>;
    case DType::kQ5_1:
      return PackBlock<DType::kQ5_1>;
    case DType::kIQ4_NL:
      return PackBlock<DType::kIQ4_NL>;
    case DType::kQ2_K:
      return PackBlock<DType::kQ2_K>;
    case DType::kQ3_K:
      return PackBlock<DType::kQ3_K>;
    case DType::kQ4_K:
      return PackBlock<DType::kQ4_K>;
    case DType::kQ5_K:
      return PackBlock<DType::kQ5_K>;
    default:
      PERGOLA_CHECK(dtype == DType::kQ6_K);
      return PackBlock<DType::kQ6_K>;
  }
}

// The inverse of PackBlock.
void UnpackBlock(DType dtype, const CudaRowShape& shape, int64_t block, const uint8_t* row,
                 uint8_t* to) {
  const CudaBlockFormat format = CudaBlockFormatOf(dtype);
  std::fill_n(to, BlockBytes(dtype), uint8_t{0});
  const uint8_t* low = row + UnitByte(format, format.low_bits, block);
  const uint8_t* high = row + shape.high + UnitByte(format, format.high_bits, block);
  ForEachOctet(format, block, [&](int64_t chunk, int t, int64_t unit_chunk) {
    const OctetPlace at = OctetOf(format, chunk, t);
    uint64_t bits = 0;
    std::memcpy(&bits, low + OctetByte(format, format.low_bits, unit_chunk, t),
                static_cast<size_t>(format.low_bits));
    ScatterOctet(ExpandOctet(bits, format.low_bits), LowPlace(dtype, at.first),
                 LowPlace(dtype, at.second), to);
    if (format.high_bits == 0) return;
    uint64_t packed = 0;
    std::memcpy(&packed, high + OctetByte(format, format.high_bits, unit_chunk, t),
                static_cast<size_t>(format.high_bits));
    const uint64_t octet = ExpandOctet(packed, format.high_bits);
    if (HighBitsShareAByte(dtype)) {
      uint8_t& byte = to[HighPlace(dtype, at.first).byte];
      for (int j = 0; j < 8; ++j) byte |= static_cast<uint8_t>((octet >> 8 * j & 1) << j);
    } else {
      ScatterOctet(octet, HighPlace(dtype, at.first), HighPlace(dtype, at.second), to);
    }
  });
  std::memcpy(to + SmallPlace(dtype), row + shape.small + block * format.small_bytes,
              static_cast<size_t>(format.small_bytes));
  std::memcpy(to + HalvesPlace(dtype), row + shape.halves + block * format.half_bytes,
              static_cast<size_t>(format.half_bytes));
}

void CheckMatrix(const CudaMatrix& matrix) {
  PERGOLA_CHECK(matrix.dtype != DType::kI32);
  PERGOLA_CHECK(matrix.rows >= 0 && matrix.columns >= 0);
  PERGOLA_CHECK(matrix.lead >= 0 && matrix.lead < BlockValues(matrix.dtype));
  PERGOLA_CHECK(matrix.dtype != DType::kInt8 || matrix.columns <= kMostInt8Columns);
}

}  // namespace

void PackCudaRows(const CudaMatrix& matrix, int64_t first_row, int64_t row_count,
                  const void* source, int64_t source_row_bytes, uint8_t* image) {
  CheckMatrix(matrix);
  PERGOLA_CHECK(first_row >= 0 && row_count >= 0 && first_row + row_count <= matrix.rows);
  const DType dtype = matrix.dtype;
  const CudaRowShape shape = CudaRowShapeOf(dtype, matrix.columns, matrix.lead);
  const int64_t block = BlockValues(dtype);
  const int64_t blocks = (matrix.lead + matrix.columns + block - 1) / block;
  const int64_t block_bytes = BlockBytes(dtype);
  const PackBlockFunction pack_block = block == 1 ? nullptr : PackBlockOf(dtype);
  for (int64_t i = 0; i < row_count; ++i) {
    const uint8_t* from = static_cast<const uint8_t*>(source) + i * source_row_bytes;
    uint8_t* row = image + (first_row + i) * shape.stride;
    if (HasRowScale(dtype)) {
      std::memcpy(image + matrix.rows * shape.stride + 4 * (first_row + i), from, 4);
      from += 4;
    }
    if (block == 1) {
      std::memcpy(row, from, static_cast<size_t>(matrix.columns * BlockBytes(dtype)));
      continue;
    }
    for (int64_t b = 0; b < blocks; ++b) {
      pack_block(shape, b, from + b * block_bytes, row);
    }
  }
}

void UnpackCudaRow(const CudaMatrix& matrix, int64_t row, float* out) {
  CheckMatrix(matrix);
  PERGOLA_CHECK(row >= 0 && row < matrix.rows);
  const CudaRowShape shape = CudaRowShapeOf(matrix.dtype, matrix.columns, matrix.lead);
  const uint8_t* from = matrix.data + row * shape.stride;
  if (HasRowScale(matrix.dtype)) {
    float scale;
    std::memcpy(&scale, matrix.data + matrix.rows * shape.stride + 4 * row, 4);
    for (int64_t k = 0; k < matrix.columns; ++k) {
      const bool fp8 = matrix.dtype == DType::kFp8;
      out[k] =
          scale * (fp8 ? E4M3ToF32(from[k]) : static_cast<float>(static_cast<int8_t>(from[k])));
    }
    return;
  }
  const int64_t block = BlockValues(matrix.dtype);
  if (block == 1) return DecodeToF32(matrix.dtype, from, matrix.columns, out);
  uint8_t bytes[kMaxBlockBytes];
  float values[kMaxBlockValues];
  for (int64_t k = 0; k < matrix.lead + matrix.columns; k += block) {
    UnpackBlock(matrix.dtype, shape, k / block, from, bytes);
    DecodeToF32(matrix.dtype, bytes, block, values);
    const int64_t begin = std::max<int64_t>(matrix.lead - k, 0);
    const int64_t end = std::min(block, matrix.lead + matrix.columns - k);
    for (int64_t i = begin; i < end; ++i) out[k + i - matrix.lead] = values[i];
  }
}

}  // namespace pergola
