#include <algorithm>

#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

class PackedMatrixTest : public testing::TestWithParam<DType> {};

TEST_P(PackedMatrixTest, UnpacksWhatTheFileHeld) {
  const DType dtype = GetParam();
  const int64_t rows = 67, columns = 3 * std::max<int64_t>(32, BlockValues(dtype));
  const auto file = RandomFileRows(dtype, rows, columns, 1);
  const PackedMatrix matrix = RandomMatrix(dtype, rows, columns, 1);
  std::vector<float> want(static_cast<size_t>(columns)), got(want.size());
  for (int64_t r = 0; r < rows; ++r) {
    DecodeToF32(dtype, file.data() + r * DTypeBytes(dtype, columns), columns, want.data());
    matrix.UnpackRow(r, got.data());
    ASSERT_TRUE(CompareBits(got, want)) << "row " << r;
  }
}

TEST_P(PackedMatrixTest, TakesRowsInAnyOrder) {
  const DType dtype = GetParam();
  const int64_t rows = 70, columns = 2 * std::max<int64_t>(32, BlockValues(dtype));
  const int64_t row_bytes = DTypeBytes(dtype, columns);
  const auto file = RandomFileRows(dtype, rows, columns, 2);
  const PackedMatrix whole = RandomMatrix(dtype, rows, columns, 2);
  PackedMatrix pieces = PackedMatrix::Allocate(dtype, rows, columns);
  for (int64_t r = rows - 1; r >= 33; --r) pieces.PackRows(r, 1, &file[r * row_bytes], row_bytes);
  pieces.PackRows(0, 33, file.data(), row_bytes);
  EXPECT_EQ(whole.bytes(), pieces.bytes());
  EXPECT_TRUE(std::equal(whole.data(), whole.data() + whole.bytes(), pieces.data()));
}

TEST_P(PackedMatrixTest, TakesAtMostSixteenBitsPerNarrowWeight) {
  const DType dtype = GetParam();
  const int64_t bits = PackedMatrix::PackedBytes(dtype, 64, 256) * 8 / (64 * 256);
  EXPECT_LE(bits, dtype == DType::kF32 ? 32 : 16);
  EXPECT_EQ(PackedMatrix::PackedBytes(dtype, 64, 256), 64 * DTypeBytes(dtype, 256));
}

TEST_P(PackedMatrixTest, EmptyMatrixHasNoBytes) {
  EXPECT_EQ(PackedMatrix::Allocate(GetParam(), 0, 64).bytes(), 0);
}

INSTANTIATE_TEST_SUITE_P(DTypes, PackedMatrixTest, testing::ValuesIn(kWeightTypes),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

TEST(PackedMatrixCutTest, EveryLeadSkipsTheValuesBeforeTheCut) {
  constexpr int64_t kRows = 5, kColumns = 50;
  for (DType dtype : kBlockTypes) {
    const auto block = static_cast<int>(BlockValues(dtype));
    for (int lead = 0; lead < block; ++lead) {
      const PackedMatrix cut = RandomMatrix(dtype, kRows, kColumns, 3, lead);
      const int64_t covered = (lead + kColumns + block - 1) / block * block;
      const auto file = RandomFileRows(dtype, kRows, covered, 3);
      std::vector<float> whole(static_cast<size_t>(covered)), got(kColumns);
      for (int64_t r = 0; r < kRows; ++r) {
        DecodeToF32(dtype, &file[r * DTypeBytes(dtype, covered)], covered, whole.data());
        cut.UnpackRow(r, got.data());
        ASSERT_TRUE(CompareBits(got, {whole.begin() + lead, whole.begin() + lead + kColumns}))
            << DTypeName(dtype) << ", lead " << lead;
      }
    }
  }
}

TEST(PackedMatrixDeathTest, RefusesALeadOutsideTheBlock) {
  EXPECT_DEATH(PackedMatrix::Allocate(DType::kQ4_1, 1, 32, 32), "CHECK failed");
  EXPECT_DEATH(PackedMatrix::Allocate(DType::kQ4_K, 1, 256, 256), "CHECK failed");
  EXPECT_DEATH(PackedMatrix::Allocate(DType::kBF16, 1, 32, 1), "CHECK failed");
}

TEST(PackedMatrixDeathTest, RefusesRowsBeyondTheEnd) {
  PackedMatrix matrix = PackedMatrix::Allocate(DType::kF32, 2, 4);
  const std::vector<float> row(8);
  EXPECT_DEATH(matrix.PackRows(1, 2, row.data(), 16), "CHECK failed");
}

}  // namespace
}  // namespace pergola
