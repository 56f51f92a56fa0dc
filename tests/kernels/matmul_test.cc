#include <limits>
#include <tuple>

#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

struct Product {
  PackedMatrix w;
  std::vector<float> x, bias, y;
  int64_t rows = 0;

  MatmulArgs Args(std::vector<float>* out) {
    MatmulArgs args;
    args.x = Tensor(x.data(), DType::kF32, {rows, w.columns()});
    args.w = &w;
    args.bias = bias.empty() ? nullptr : bias.data();
    args.y = Tensor(out->data(), DType::kF32, {rows, w.rows()});
    return args;
  }
};

Product MakeProduct(DType dtype, int64_t rows, int64_t columns, int64_t outputs, int lead = 0) {
  Product p;
  p.rows = rows;
  p.w = RandomMatrix(dtype, outputs, columns, 7, lead);
  p.x = RandomValues(rows * columns, 8);
  p.y = RandomValues(rows * outputs, 9);  // old contents: overwritten, or added to
  return p;
}

std::vector<float> Compute(Product* p, CpuTarget target, int threads, bool accumulate = false) {
  std::vector<float> y = p->y;
  MatmulArgs args = p->Args(&y);
  args.accumulate = accumulate;
  const auto stream = MakeStream(target, threads);
  Matmul(*stream, args);
  return y;
}

// Higham's bound K u sum |x w|, with one more rounding for the bias, the sum with y, and the
// reference's own result.
std::vector<double> Bounds(const Product& p, bool accumulate) {
  const int64_t columns = p.w.columns();
  const int64_t outputs = p.w.rows();
  std::vector<double> bounds(static_cast<size_t>(p.rows * outputs));
  std::vector<float> w(static_cast<size_t>(columns));
  for (int64_t o = 0; o < outputs; ++o) {
    p.w.UnpackRow(o, w.data());
    for (int64_t r = 0; r < p.rows; ++r) {
      double sum = 0;
      for (int64_t k = 0; k < columns; ++k) {
        sum += std::abs(static_cast<double>(p.x[r * columns + k]) * static_cast<double>(w[k]));
      }
      if (!p.bias.empty()) sum += std::abs(static_cast<double>(p.bias[o]));
      if (accumulate) sum += std::abs(static_cast<double>(p.y[r * outputs + o]));
      bounds[r * outputs + o] = static_cast<double>(columns + 3) * kUnit * sum;
    }
  }
  return bounds;
}

class MatmulTest : public testing::TestWithParam<std::tuple<CpuTarget, DType>> {
 protected:
  CpuTarget target() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

TEST_P(MatmulTest, AgreesWithTheReferenceWithinTheBound) {
  SKIP_WITHOUT(target());
  const int64_t shapes[][2] = {{1, 1}, {31, 33}, {32, 32}, {33, 129}, {576, 100}};
  for (const auto& shape : shapes) {
    for (int64_t rows : {1, 2, 3, 7, 16, 17, 64}) {
      Product p = MakeProduct(dtype(), rows, shape[0], shape[1]);
      std::vector<float> want = p.y;
      MatmulRef(p.Args(&want));
      const auto bounds = Bounds(p, false);
      EXPECT_TRUE(CompareWith(Compute(&p, target(), 2), want, [&](size_t i) { return bounds[i]; }))
          << rows << " rows, K " << shape[0] << ", outputs " << shape[1];
    }
  }
}

TEST_P(MatmulTest, AddsBiasAndAccumulates) {
  SKIP_WITHOUT(target());
  for (int64_t rows : {1, 5, 17}) {
    Product p = MakeProduct(dtype(), rows, 65, 70);
    p.bias = RandomValues(70, 10);
    std::vector<float> want = p.y;
    MatmulArgs args = p.Args(&want);
    args.accumulate = true;
    MatmulRef(args);
    const auto bounds = Bounds(p, true);
    EXPECT_TRUE(
        CompareWith(Compute(&p, target(), 2, true), want, [&](size_t i) { return bounds[i]; }));
  }
}

TEST_P(MatmulTest, NoRowsWriteNothing) {
  SKIP_WITHOUT(target());
  Product p = MakeProduct(dtype(), 0, 32, 32);
  EXPECT_TRUE(Compute(&p, target(), 2).empty());
}

std::string TargetAndType(const testing::TestParamInfo<std::tuple<CpuTarget, DType>>& info) {
  return std::string(CpuTargetName(std::get<0>(info.param))) + "_" +
         std::string(DTypeName(std::get<1>(info.param)));
}

INSTANTIATE_TEST_SUITE_P(Targets, MatmulTest,
                         testing::Combine(testing::ValuesIn(kAllTargets),
                                          testing::ValuesIn(kWeightTypes)),
                         TargetAndType);

// Weights in blocks only: dense rows have no block to cut.
class MatmulCutTest : public MatmulTest {};

TEST_P(MatmulCutTest, CutInsideABlockGivesTheBitsOfTheSameValuesInF32) {
  SKIP_WITHOUT(target());
  const int last = static_cast<int>(BlockValues(dtype())) - 1;
  for (int lead : {0, 5, last / 2, last}) {
    for (int64_t columns : {1, 50, 300}) {
      for (int64_t rows : {1, 2, 16, 50}) {
        Product p = MakeProduct(dtype(), rows, columns, 140, lead);
        Product dense = MakeProduct(DType::kF32, rows, columns, 140);
        std::vector<float> row(static_cast<size_t>(columns));
        dense.w = PackedMatrix::Allocate(DType::kF32, 140, columns);
        for (int64_t o = 0; o < 140; ++o) {
          p.w.UnpackRow(o, row.data());
          dense.w.PackRows(o, 1, row.data(), columns * 4);
        }
        EXPECT_TRUE(CompareBits(Compute(&p, target(), 1), Compute(&dense, target(), 1)))
            << "lead " << lead << ", K " << columns << ", rows " << rows;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, MatmulCutTest,
                         testing::Combine(testing::ValuesIn(kAllTargets),
                                          testing::ValuesIn(kBlockTypes)),
                         TargetAndType);

// The promise of DESIGN I4; the reference, in double, keeps it trivially.
class MatmulBitsTest : public MatmulTest {};

TEST_P(MatmulBitsTest, OneRowHasTheBitsItHasAmongMany) {
  SKIP_WITHOUT(target());
  // The portable path calls the C library for each multiply-add: fewer of them.
  const bool slow = target() == CpuTarget::kPortable;
  const int64_t columns = slow ? 530 : 1100, outputs = slow ? 35 : 70;
  const int64_t most = slow ? 70 : 512;
  Product all = MakeProduct(dtype(), most, columns, outputs);
  const std::vector<float> want = Compute(&all, target(), 1);
  for (int64_t rows = 1; rows <= 64; ++rows) {
    // The batch ends with the last row, so a row's place changes with the batch.
    Product some = MakeProduct(dtype(), rows, columns, outputs);
    some.x.assign(all.x.end() - rows * columns, all.x.end());
    const std::vector<float> tail(want.end() - rows * outputs, want.end());
    ASSERT_TRUE(CompareBits(Compute(&some, target(), 1), tail)) << rows << " rows";
  }
}

TEST_P(MatmulBitsTest, ThreadsDoNotChangeBits) {
  SKIP_WITHOUT(target());
  for (int64_t rows : {1, 3, 50}) {
    for (int64_t outputs : {1, 33, 300}) {
      Product p = MakeProduct(dtype(), rows, 130, outputs);
      const std::vector<float> want = Compute(&p, target(), 1);
      for (int threads : {2, 3, 5}) {
        EXPECT_TRUE(CompareBits(Compute(&p, target(), threads), want)) << threads << " threads";
      }
    }
  }
}

TEST_P(MatmulBitsTest, EqualsTheExplicitChainOfFusedMultiplyAdds) {
  SKIP_WITHOUT(target());
  Product p = MakeProduct(dtype(), 3, 77, 40);
  p.bias = RandomValues(40, 11);
  std::vector<float> want(3 * 40), w(77);
  for (int64_t o = 0; o < 40; ++o) {
    p.w.UnpackRow(o, w.data());
    for (int64_t r = 0; r < 3; ++r) {
      float sum = 0;
      for (int64_t k = 0; k < 77; ++k) sum = std::fma(p.x[r * 77 + k], w[k], sum);
      want[r * 40 + o] = sum + p.bias[o];
    }
  }
  EXPECT_TRUE(CompareBits(Compute(&p, target(), 2), want));
}

INSTANTIATE_TEST_SUITE_P(Targets, MatmulBitsTest,
                         testing::Combine(testing::ValuesIn(kFastTargets),
                                          testing::ValuesIn(kWeightTypes)),
                         TargetAndType);

TEST(MatmulNaNTest, NaNStaysInItsRowAndItsColumn) {
  for (CpuTarget target : kAllTargets) {
    if (!CpuTargetSupported(target)) continue;
    Product p = MakeProduct(DType::kF32, 20, 40, 50);
    p.x[3 * 40 + 7] = std::numeric_limits<float>::quiet_NaN();
    const auto y = Compute(&p, target, 2);
    for (int64_t i = 0; i < 20 * 50; ++i) EXPECT_EQ(std::isnan(y[i]), i / 50 == 3);
  }
}

TEST(MatmulLongTest, RowsTooLongForTheScratchKeepTheirBits) {
  // 12 rows of 2 MiB / 48 and 2 rows of 2 MiB / 8 bytes are the limits of packing.
  for (int64_t columns : {int64_t{50000}, int64_t{300000}}) {
    Product p = MakeProduct(DType::kBF16, 3, columns, 3);
    const auto y = Compute(&p, CpuTarget::kPortable, 2);
    Product last = MakeProduct(DType::kBF16, 1, columns, 3);
    last.x.assign(p.x.end() - columns, p.x.end());
    for (CpuTarget target : kFastTargets) {
      if (!CpuTargetSupported(target)) continue;
      EXPECT_TRUE(CompareBits(Compute(&p, target, 1), y));
      EXPECT_TRUE(CompareBits(Compute(&last, target, 1), {y.end() - 3, y.end()}));
    }
  }
}

TEST(MatmulDeathTest, RefusesShapesThatDoNotFit) {
  Product p = MakeProduct(DType::kF32, 2, 8, 8);
  std::vector<float> y(16);
  MatmulArgs args = p.Args(&y);
  args.x = Tensor(p.x.data(), DType::kF32, {2, 7});
  const auto stream = MakeStream(CpuTarget::kPortable, 1);
  EXPECT_DEATH(Matmul(*stream, args), "x has 7 columns, the weights 8");
}

}  // namespace
}  // namespace pergola
