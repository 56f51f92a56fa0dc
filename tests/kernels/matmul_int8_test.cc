#include <algorithm>
#include <limits>

#include "kernels/cpu/matmul_cpu.h"
#include "kernels/int8.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows of f32 as an int8 matrix.
PackedMatrix Int8Matrix(const std::vector<float>& values, int64_t rows, int64_t columns) {
  PackedMatrix matrix = PackedMatrix::Allocate(DType::kInt8, rows, columns);
  std::vector<uint8_t> row(static_cast<size_t>(4 + columns));
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = values.data() + r * columns;
    const Int8Steps steps = StepsOfRow(from, columns);
    QuantizeInt8(from, columns, steps, reinterpret_cast<int8_t*>(row.data() + 4));
    std::memcpy(row.data(), &steps.scale, 4);
    matrix.PackRows(r, 1, row.data(), 4 + columns);
  }
  return matrix;
}

struct Product {
  std::vector<float> weights;  // as they were in f32
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

// Every 29th value of x is an outlier or nearly one.
Product MakeProduct(int64_t rows, int64_t columns, int64_t outputs) {
  Product p;
  p.rows = rows;
  p.weights = RandomValues(outputs * columns, 7);
  p.w = Int8Matrix(p.weights, outputs, columns);
  p.x = RandomValues(rows * columns, 8);
  for (size_t i = 0; i < p.x.size(); i += 29) p.x[i] *= 8;
  p.y = RandomValues(rows * outputs, 9);
  return p;
}

std::vector<float> Compute(Product* p, CpuTarget target, int threads, bool accumulate = false) {
  std::vector<float> y = p->y;
  MatmulArgs args = p->Args(&y);
  args.accumulate = accumulate;
  Matmul(*MakeStream(target, threads), args);
  return y;
}

// What the header promises against the reference, and against x and w before they were rounded.
struct Bounds {
  std::vector<double> reference, exact;
  std::vector<double> product;  // of the f32 values
};

Bounds BoundsOf(const Product& p, bool accumulate = false) {
  const int64_t columns = p.w.columns(), outputs = p.w.rows();
  Bounds bounds;
  std::vector<int8_t> q(static_cast<size_t>(columns)), w(q.size());
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* x = p.x.data() + r * columns;
    const float limit = Int8LimitOf(x, columns);
    const double s = QuantizeInt8Token(x, columns, limit, q.data());
    for (int64_t o = 0; o < outputs; ++o) {
      const double t = p.w.Int8Row(o, w.data());
      double size = 0, exact = 0, product = 0;
      int64_t outliers = 0;
      for (int64_t k = 0; k < columns; ++k) {
        const double value = x[k], weight = p.weights[o * columns + k];
        product += value * weight;
        if (IsInt8Outlier(x[k], limit)) {
          ++outliers;
          size += std::abs(value * t * w[k]);
          exact += std::abs(value) * t * (0.5 + 0x1p-15);
        } else {
          size += std::abs(s * q[k] * t * w[k]);
          exact += (0.5 + 0x1p-15) * (s * std::abs(weight) + t * std::abs(value)) +
                   (0.25 + 0x1p-14) * s * t;
        }
      }
      if (!p.bias.empty()) size += std::abs(static_cast<double>(p.bias[o]));
      if (accumulate) size += std::abs(static_cast<double>(p.y[r * outputs + o]));
      bounds.reference.push_back(static_cast<double>(outliers + 5) * kUnit * size);
      bounds.exact.push_back(exact + bounds.reference.back());
      bounds.product.push_back(product);
    }
  }
  return bounds;
}

class MatmulInt8Test : public testing::TestWithParam<CpuTarget> {};

TEST_P(MatmulInt8Test, AgreesWithTheReferenceWithinTheBound) {
  SKIP_WITHOUT(GetParam());
  const int64_t shapes[][2] = {{1, 1}, {3, 31}, {31, 33}, {32, 32}, {66, 129}, {577, 100}};
  for (const auto& shape : shapes) {
    for (int64_t rows : {1, 2, 3, 7, 16, 17, 64}) {
      Product p = MakeProduct(rows, shape[0], shape[1]);
      std::vector<float> want = p.y;
      MatmulRef(p.Args(&want));
      const Bounds bounds = BoundsOf(p);
      EXPECT_TRUE(CompareWith(Compute(&p, GetParam(), 2), want,
                              [&](size_t i) { return bounds.reference[i]; }))
          << rows << " rows, K " << shape[0] << ", outputs " << shape[1];
    }
  }
}

TEST_P(MatmulInt8Test, LiesWithinTheRoundingOfWeightsAndActivations) {
  SKIP_WITHOUT(GetParam());
  Product p = MakeProduct(5, 300, 70);
  const Bounds bounds = BoundsOf(p);
  const std::vector<float> want(bounds.product.begin(), bounds.product.end());
  EXPECT_TRUE(CompareWith(Compute(&p, GetParam(), 2), want,
                          [&](size_t i) { return bounds.exact[i] + std::abs(want[i]) * kUnit; }));
}

TEST_P(MatmulInt8Test, AddsBiasAndAccumulates) {
  SKIP_WITHOUT(GetParam());
  for (int64_t rows : {1, 5, 17}) {
    Product p = MakeProduct(rows, 65, 70);
    p.bias = RandomValues(70, 10);
    std::vector<float> want = p.y;
    MatmulArgs args = p.Args(&want);
    args.accumulate = true;
    MatmulRef(args);
    const Bounds bounds = BoundsOf(p, true);
    EXPECT_TRUE(CompareWith(Compute(&p, GetParam(), 2, true), want,
                            [&](size_t i) { return bounds.reference[i]; }));
  }
}

TEST_P(MatmulInt8Test, NoRowsWriteNothing) {
  SKIP_WITHOUT(GetParam());
  Product p = MakeProduct(0, 32, 32);
  EXPECT_TRUE(Compute(&p, GetParam(), 2).empty());
}

TEST_P(MatmulInt8Test, RowsOfZerosGiveTheBias) {
  SKIP_WITHOUT(GetParam());
  Product p = MakeProduct(3, 70, 40);
  std::fill_n(p.x.begin() + 70, 70, 0.0F);
  p.bias = RandomValues(40, 11);
  const auto y = Compute(&p, GetParam(), 1);
  for (int64_t o = 0; o < 40; ++o) EXPECT_EQ(y[40 + o], p.bias[o]);
}

TEST_P(MatmulInt8Test, RowsAndWeightsTooSmallForStepsAreZeros) {
  SKIP_WITHOUT(GetParam());
  Product p = MakeProduct(2, 33, 40);
  std::fill_n(p.x.begin(), 33, 0x1.0p-97F);
  std::fill_n(p.weights.begin(), 33, 0x1.0p-120F);
  p.w = Int8Matrix(p.weights, 40, 33);
  const auto y = Compute(&p, GetParam(), 1);
  for (int64_t o = 0; o < 40; ++o) EXPECT_EQ(y[o], 0.0F);
  EXPECT_EQ(y[40], 0.0F);
  EXPECT_NE(y[41], 0.0F);
}

TEST_P(MatmulInt8Test, NaNAndInfinityStayInTheirRow) {
  SKIP_WITHOUT(GetParam());
  for (const float bad : {kNaN, kInfinity, -kInfinity}) {
    for (const int64_t column : {0, 7, 39}) {
      Product p = MakeProduct(20, 40, 50);
      Product clean = MakeProduct(20, 40, 50);
      p.x[3 * 40 + column] = bad;
      const auto y = Compute(&p, GetParam(), 2);
      const auto want = Compute(&clean, GetParam(), 2);
      for (int64_t i = 0; i < 20 * 50; ++i) {
        if (i / 50 == 3) {
          EXPECT_FALSE(std::isfinite(y[i])) << bad;
        } else {
          EXPECT_EQ(y[i], want[i]);
        }
      }
    }
  }
}

TEST_P(MatmulInt8Test, OutliersAreMultipliedInF32) {
  SKIP_WITHOUT(GetParam());
  Product p = MakeProduct(2, 50, 40);
  // One row of outliers alone; beside it one whose largest value is just none.
  for (int64_t k = 0; k < 50; ++k) p.x[k] = k % 2 == 0 ? 6.5F + static_cast<float>(k) : -1e6F;
  for (int64_t k = 0; k < 50; ++k) p.x[50 + k] = kInt8Outlier;
  const auto y = Compute(&p, GetParam(), 1);
  std::vector<int8_t> w(50);
  for (int64_t o = 0; o < 40; ++o) {
    const float t = p.w.Int8Row(o, w.data());
    double sum = 0, plain = 0, size = 0;
    for (int64_t k = 0; k < 50; ++k) {
      sum += static_cast<double>(p.x[k]) * w[k];
      size += std::abs(static_cast<double>(p.x[k]) * w[k]);
      plain += 127.0 * w[k];
    }
    EXPECT_NEAR(y[o], t * sum, 55 * kUnit * size * t);
    EXPECT_NEAR(y[40 + o], t * (6.0F / 127.0F) * plain, 4 * kUnit * std::abs(y[40 + o]));
  }
}

TEST_P(MatmulInt8Test, TheLongestRowsOfTheLargestValuesDoNotOverflow) {
  SKIP_WITHOUT(GetParam());
  const int64_t columns = kMostInt8Columns;
  Product p;
  p.rows = 2;
  p.weights.assign(static_cast<size_t>(columns), -1.0F);
  p.w = Int8Matrix(p.weights, 1, columns);
  p.x.assign(static_cast<size_t>(2 * columns), 1.0F);
  std::fill_n(p.x.begin() + columns, columns, -1.0F);
  p.y.resize(2);
  const auto y = Compute(&p, GetParam(), 1);
  EXPECT_NEAR(y[0], -static_cast<double>(columns), 4 * kUnit * static_cast<double>(columns));
  EXPECT_EQ(y[1], -y[0]);
}

std::string TargetName(const testing::TestParamInfo<CpuTarget>& info) {
  return CpuTargetName(info.param);
}

INSTANTIATE_TEST_SUITE_P(Targets, MatmulInt8Test, testing::ValuesIn(kAllTargets), TargetName);

// The promise of DESIGN I4.
class MatmulInt8BitsTest : public MatmulInt8Test {};

TEST_P(MatmulInt8BitsTest, OneRowHasTheBitsItHasAmongMany) {
  SKIP_WITHOUT(GetParam());
  const int64_t columns = 530, outputs = 135, most = 100;
  Product all = MakeProduct(most, columns, outputs);
  const std::vector<float> want = Compute(&all, GetParam(), 1);
  for (int64_t rows = 1; rows <= 64; ++rows) {
    Product some = MakeProduct(rows, columns, outputs);
    some.x.assign(all.x.end() - rows * columns, all.x.end());
    const std::vector<float> tail(want.end() - rows * outputs, want.end());
    ASSERT_TRUE(CompareBits(Compute(&some, GetParam(), 1), tail)) << rows << " rows";
  }
}

TEST_P(MatmulInt8BitsTest, ThreadsAndTargetsDoNotChangeBits) {
  SKIP_WITHOUT(GetParam());
  for (int64_t rows : {1, 2, 3, 50}) {
    for (int64_t outputs : {1, 33, 300}) {
      Product p = MakeProduct(rows, 130, outputs);
      p.bias = RandomValues(outputs, 12);
      const std::vector<float> want = Compute(&p, CpuTarget::kPortable, 1);
      for (int threads : {1, 2, 3, 5}) {
        EXPECT_TRUE(CompareBits(Compute(&p, GetParam(), threads), want)) << threads << " threads";
      }
    }
  }
}

TEST_P(MatmulInt8BitsTest, InstructionsForBytesDoNotChangeBits) {
  SKIP_WITHOUT(GetParam());
  for (int64_t rows : {1, 2, 4, 8, 12, 15, 50}) {
    Product p = MakeProduct(rows, 213, 300);
    std::vector<float> with = p.y, without = p.y;
    const auto stream = MakeStream(GetParam(), 2);
    MatmulInt8Cpu(*stream, p.Args(&with), true);
    MatmulInt8Cpu(*stream, p.Args(&without), false);
    EXPECT_TRUE(CompareBits(with, without)) << rows << " rows";
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, MatmulInt8BitsTest, testing::ValuesIn(kFastTargets), TargetName);

TEST(Int8MatrixTest, UnpacksItsRoundedRowsAndCountsItsBytes) {
  const int64_t rows = 67, columns = 51;
  const std::vector<float> values = RandomValues(rows * columns, 3);
  const PackedMatrix matrix = Int8Matrix(values, rows, columns);
  // Three panels of 32 scales, 32 sums and 13 quads of 32 outputs.
  EXPECT_EQ(matrix.bytes(), 3 * (32 * 4 + 32 * 4 + 13 * 128));
  EXPECT_EQ(PackedMatrix::PackedBytes(DType::kInt8, rows, columns), matrix.bytes());
  std::vector<float> row(static_cast<size_t>(columns));
  std::vector<int8_t> q(row.size());
  for (int64_t r = 0; r < rows; ++r) {
    matrix.UnpackRow(r, row.data());
    const float scale = matrix.Int8Row(r, q.data());
    EXPECT_EQ(*std::max_element(q.begin(), q.end()) == 127 ||
                  *std::min_element(q.begin(), q.end()) == -127,
              true);
    for (int64_t k = 0; k < columns; ++k) {
      EXPECT_NEAR(row[k], values[r * columns + k], (0.5 + 0x1p-15) * scale);
    }
  }
}

TEST(Int8MatrixDeathTest, RefusesRowsWhoseSumsMightOverflow) {
  EXPECT_DEATH(PackedMatrix::Allocate(DType::kInt8, 1, kMostInt8Columns + 1), "CHECK failed");
}

TEST(Int8RowTest, TheLimitFollowsSmallTokensAndEndsAtSix) {
  std::vector<float> x(100, 0.01F);
  EXPECT_NEAR(Int8LimitOf(x.data(), 100), 0.05, 1e-6);
  x[7] = 1e9F;  // beyond six: does not count
  x[8] = kNaN;
  EXPECT_NEAR(Int8LimitOf(x.data(), 100), 0.05, 1e-3);
  x.assign(100, 3.0F);
  EXPECT_EQ(Int8LimitOf(x.data(), 100), kInt8Outlier);
  x.assign(100, 0.0F);
  EXPECT_EQ(Int8LimitOf(x.data(), 100), kInt8Outlier);
  x.assign(100, 0x1.0p-90F);
  EXPECT_EQ(Int8LimitOf(x.data(), 100), kInt8Outlier);
}

TEST(Int8RowTest, RoundsToNearestEven) {
  const std::vector<float> x = {127.0F, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, 2.500001F, -127.0F};
  std::vector<int8_t> q(x.size());
  EXPECT_EQ(StepsOfRow(x.data(), 8).scale, 1.0F);
  QuantizeInt8(x.data(), 8, StepsOfRow(x.data(), 8), q.data());
  EXPECT_EQ(q, (std::vector<int8_t>{127, 0, 2, 2, 0, -2, 3, -127}));
}

TEST(Int8RowTest, TheLargestFiniteRowHasSteps) {
  const std::vector<float> x = {std::numeric_limits<float>::max(), -1.0F};
  std::vector<int8_t> q(2);
  const Int8Steps steps = StepsOfRow(x.data(), 2);
  EXPECT_TRUE(std::isfinite(steps.scale));
  QuantizeInt8(x.data(), 2, steps, q.data());
  EXPECT_EQ(q, (std::vector<int8_t>{127, 0}));
}

}  // namespace
}  // namespace pergola
