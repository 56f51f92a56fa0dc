#include <algorithm>

#include "kernels/cuda/matrix_layout.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

// A row of dense values or blocks, or of int8 and fp8 its scale and values.
int64_t FileRowBytes(DType dtype, int64_t values) {
  return DTypeBytes(dtype, values) + (HasRowScale(dtype) ? 4 : 0);
}

std::vector<uint8_t> FileRows(DType dtype, int64_t rows, int64_t values) {
  if (!HasRowScale(dtype)) return RandomFileRows(dtype, rows, values, 1);
  const int64_t row_bytes = FileRowBytes(dtype, values);
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * row_bytes));
  std::mt19937 generator(1);
  for (uint8_t& b : bytes) b = static_cast<uint8_t>(generator());
  for (int64_t r = 0; r < rows; ++r) {
    const float scale = 0.25F + static_cast<float>(r);
    std::memcpy(&bytes[static_cast<size_t>(r * row_bytes)], &scale, 4);
  }
  return bytes;
}

void DecodeFileRow(DType dtype, const uint8_t* row, int64_t values, float* out) {
  if (!HasRowScale(dtype)) return DecodeToF32(dtype, row, values, out);
  float scale;
  std::memcpy(&scale, row, 4);
  for (int64_t k = 0; k < values; ++k) {
    out[k] = scale * (dtype == DType::kFp8 ? E4M3ToF32(row[4 + k])
                                           : static_cast<float>(static_cast<int8_t>(row[4 + k])));
  }
}

class CudaMatrixLayoutTest : public testing::TestWithParam<DType> {
 protected:
  DType dtype() const { return GetParam(); }
  int64_t block() const { return BlockValues(dtype()); }
  int64_t Covered(int64_t values) const { return (values + block() - 1) / block() * block(); }

  // Packs random rows in two pieces, the last one first, and compares every row decoded.
  void RoundTrip(int64_t rows, int64_t columns, int lead) {
    const int64_t covered = Covered(lead + columns);
    const std::vector<uint8_t> file = FileRows(dtype(), rows, covered);
    const int64_t row_bytes = FileRowBytes(dtype(), covered);
    const auto bytes = CudaMatrixBytes(dtype(), rows, columns, lead);
    // Not a byte beyond the image is written.
    std::vector<uint8_t> image(static_cast<size_t>(bytes + 64));
    std::fill(image.begin() + bytes, image.end(), uint8_t{0x5a});
    CudaMatrix matrix{dtype(), rows, columns, lead, image.data()};
    const int64_t half = rows / 2;
    PackCudaRows(matrix, half, rows - half, &file[static_cast<size_t>(half * row_bytes)], row_bytes,
                 image.data());
    PackCudaRows(matrix, 0, half, file.data(), row_bytes, image.data());
    EXPECT_EQ(std::count(image.begin() + bytes, image.end(), 0x5a), 64);
    std::vector<float> want(static_cast<size_t>(covered)), got(static_cast<size_t>(columns));
    for (int64_t r = 0; r < rows; ++r) {
      DecodeFileRow(dtype(), &file[static_cast<size_t>(r * row_bytes)], covered, want.data());
      UnpackCudaRow(matrix, r, got.data());
      ASSERT_TRUE(CompareBits(got, {want.begin() + lead, want.begin() + lead + columns}))
          << "row " << r << ", " << columns << " columns, lead " << lead;
    }
  }
};

TEST_P(CudaMatrixLayoutTest, UnpacksWhatTheFileHeld) {
  for (int64_t columns : {1, 31, 32, 100, 128, 256, 257, 640}) RoundTrip(5, columns, 0);
  RoundTrip(1, 300, 0);
}

TEST_P(CudaMatrixLayoutTest, EveryLeadSkipsTheValuesBeforeTheCut) {
  for (int lead = 0; lead < block(); ++lead) RoundTrip(2, 50, lead);
}

TEST_P(CudaMatrixLayoutTest, RowsAreAlignedAndNoLongerThanInTheFile) {
  const CudaRowShape shape = CudaRowShapeOf(dtype(), 4096, 0);
  EXPECT_EQ(shape.stride, DTypeBytes(dtype(), 4096));
  EXPECT_EQ(CudaRowShapeOf(dtype(), 4095, 0).stride % kCudaRowAlignment, 0);
  EXPECT_EQ(CudaMatrixBytes(dtype(), 0, 64), 0);
}

std::string Name(const testing::TestParamInfo<DType>& info) {
  return std::string(DTypeName(info.param));
}
INSTANTIATE_TEST_SUITE_P(BlockTypes, CudaMatrixLayoutTest, testing::ValuesIn(kBlockTypes), Name);
INSTANTIATE_TEST_SUITE_P(PlainTypes, CudaMatrixLayoutTest,
                         testing::Values(DType::kF32, DType::kBF16, DType::kF16, DType::kInt8,
                                         DType::kFp8),
                         Name);

TEST(CudaMatrixLayoutDeathTest, RefusesRowsAndLeadsThatDoNotFit) {
  const std::vector<uint8_t> row(1024);
  std::vector<uint8_t> image(4096);
  CudaMatrix matrix{DType::kQ4_1, 2, 32, 0, nullptr};
  EXPECT_DEATH(PackCudaRows(matrix, 1, 2, row.data(), 20, image.data()), "CHECK failed");
  matrix.lead = 32;
  EXPECT_DEATH(PackCudaRows(matrix, 0, 1, row.data(), 20, image.data()), "CHECK failed");
  matrix = {DType::kI32, 2, 32, 0, nullptr};
  EXPECT_DEATH(PackCudaRows(matrix, 0, 1, row.data(), 128, image.data()), "CHECK failed");
}

}  // namespace
}  // namespace pergola
