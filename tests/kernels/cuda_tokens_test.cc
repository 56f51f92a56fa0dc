// kernels/cuda/matmul_tokens.cu: int8 weights by int8 tokens.
#include "tests/kernels/cuda_matmul_test_util.h"

namespace pergola {
namespace {

// kernels/int8.h's product.
class CudaTokensTest : public testing::TestWithParam<DType> {
 protected:
  // Every 29th value of x is an outlier or nearly one.
  Product Make(Case c) const {
    c.x_dtype = GetParam();
    c.int8_product = CudaInt8Product::kTokens;
    Product p(DType::kInt8, c);
    for (size_t i = 0; i < p.x.size(); i += 29) p.x[i] *= 8;
    return p;
  }

  // The bound of kernels/cuda/matmul.h.
  static testing::AssertionResult Agrees(const Product& p) {
    const std::vector<float> want = p.Want();
    std::vector<double> bounds(want.size());
    std::vector<int8_t> q(static_cast<size_t>(p.c.columns)), w(q.size());
    for (int64_t i = 0; i < p.c.rows * p.c.outputs; ++i) {
      const float* x = p.x.data() + i / p.c.outputs * p.c.columns;
      const float limit = Int8LimitOf(x, p.c.columns);
      const double s = QuantizeInt8Token(x, p.c.columns, limit, q.data());
      const double t = p.w.packed.Int8Row(i % p.c.outputs, w.data());
      double size = 0;
      int64_t outliers = 0;
      for (int64_t k = 0; k < p.c.columns; ++k) {
        const bool outlier = IsInt8Outlier(x[k], limit);
        outliers += outlier ? 1 : 0;
        size += std::abs((outlier ? static_cast<double>(x[k]) : s * q[k]) * t * w[k]);
      }
      if (p.c.bias) size += std::abs(static_cast<double>(p.bias[i % p.c.outputs]));
      if (p.c.accumulate) size += std::abs(static_cast<double>(p.y[p.At(i)]));
      bounds[p.At(i)] = static_cast<double>(2 * outliers + 13) * 0x1p-23 * size +
                        1.01 * RoundoffOf(p.c.y_dtype) * std::abs(want[p.At(i)]);
    }
    return CompareWith(p.Compute(), want, [&](size_t i) { return bounds[i]; });
  }
};

TEST_P(CudaTokensTest, AgreesWithTheReferenceWithinTheBound) {
  SKIP_WITHOUT_GPU();
  const int64_t shapes[][2] = {{1, 1}, {31, 5}, {128, 16}, {264, 37}, {577, 19}};
  for (const auto& shape : shapes) {
    for (int64_t rows : {0, 1, 2, 5, 8, 17, 33, 70}) {
      Case c;
      c.rows = rows;
      c.columns = shape[0];
      c.outputs = shape[1];
      EXPECT_TRUE(Agrees(Make(c))) << rows << " rows, K " << c.columns;
    }
  }
}

TEST_P(CudaTokensTest, AddsBiasAndAccumulates) {
  SKIP_WITHOUT_GPU();
  for (int64_t rows : {1, 12, 40}) {
    Case c;
    c.rows = rows;
    c.columns = 65;
    c.outputs = 20;
    c.bias = c.accumulate = true;
    c.y_gap = 3;
    c.y_dtype = rows == 12 ? GetParam() : DType::kF32;
    EXPECT_TRUE(Agrees(Make(c))) << rows << " rows";
  }
}

TEST_P(CudaTokensTest, NaNAndInfinityStayInTheirRow) {
  SKIP_WITHOUT_GPU();
  for (const float bad : {kNaN, std::numeric_limits<float>::infinity()}) {
    Case c;
    c.rows = 11;
    c.columns = 40;
    c.outputs = 18;
    Product p = Make(c);
    const std::vector<float> want = p.Compute();
    p.x[3 * 40 + 7] = bad;
    const std::vector<float> y = p.Compute();
    for (int64_t i = 0; i < 11 * 18; ++i) {
      if (i / 18 == 3) {
        EXPECT_FALSE(std::isfinite(y[i]));
      } else {
        EXPECT_EQ(y[i], want[i]);
      }
    }
  }
}

TEST_P(CudaTokensTest, NoOrderOfThreadsChangesBits) {
  SKIP_WITHOUT_GPU();
  for (int64_t rows : {3, 21}) {
    Case c;
    c.rows = rows;
    c.columns = 1300;
    c.outputs = 18;
    EXPECT_TRUE(SameInEveryOrder(Make(c))) << rows << " rows";
  }
}

TEST_P(CudaTokensTest, RowsOfZerosGiveTheBias) {
  SKIP_WITHOUT_GPU();
  Case c;
  c.rows = 3;
  c.columns = 70;
  c.outputs = 20;
  c.bias = true;
  Product p = Make(c);
  std::fill_n(p.x.begin() + 70, 70, 0.0F);
  const std::vector<float> y = p.Compute();
  for (int64_t o = 0; o < 20; ++o) EXPECT_EQ(y[20 + o], p.bias[o]);
}

INSTANTIATE_TEST_SUITE_P(Types, CudaTokensTest, testing::ValuesIn(kActivations), TypeName);

}  // namespace
}  // namespace pergola
