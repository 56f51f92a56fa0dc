// kernels/cuda/matmul_tokens.cu: weights of eight bits by tokens in eight bits.
#include <tuple>

#include "tests/kernels/cuda_matmul_test_util.h"

namespace pergola {
namespace {

// By dtype of x and of the weights.
class CudaTokensTest : public testing::TestWithParam<std::tuple<DType, DType>> {
 protected:
  static DType x_dtype() { return std::get<0>(GetParam()); }
  static bool int8() { return std::get<1>(GetParam()) == DType::kInt8; }

  // Every 29th value of x is an outlier of int8 or nearly one.
  static Product Make(Case c) {
    c.x_dtype = x_dtype();
    if (!int8()) c.y_dtype = x_dtype();
    c.tokens = CudaTokens::kEightBits;
    Product p(std::get<1>(GetParam()), c);
    for (size_t i = 0; i < p.x.size(); i += 29) p.x[i] *= 8;
    return p;
  }

  // Of int8: the bound of kernels/cuda/matmul.h.
  static std::vector<double> Int8Bounds(const Product& p, const std::vector<float>& want) {
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
    return bounds;
  }
  static testing::AssertionResult Agrees(const Product& p) {
    if (!int8()) return p.Agrees();
    const std::vector<float> got = p.Compute(), want = p.Want();
    const std::vector<double> bounds =
        p.eight_bits ? p.Activated(Int8Bounds(p, p.Want(/*activated=*/false)), want)
                     : p.Bounds(want);
    return CompareWith(got, want, [&](size_t i) { return bounds[i]; });
  }
};

TEST_P(CudaTokensTest, AgreesWithTheReferenceWithinTheBound) {
  SKIP_WITHOUT_GPU();
  const int64_t shapes[][2] = {{1, 16}, {31, 32}, {128, 16}, {264, 80}, {577, 48}};
  for (const auto& shape : shapes) {
    for (int64_t rows : {1, 17, 70, 130}) {
      Case c;
      c.rows = rows;
      c.columns = shape[0];
      c.outputs = shape[1];
      const Product p = Make(c);
      EXPECT_TRUE(Agrees(p)) << rows << " rows, K " << c.columns;
#ifdef PERGOLA_CUDA_EMULATOR  // a Hopper
      EXPECT_TRUE(p.eight_bits);
#endif
    }
  }
}

TEST_P(CudaTokensTest, AddsBiasAndAccumulates) {
  SKIP_WITHOUT_GPU();
  for (int64_t rows : {1, 12, 70}) {
    Case c;
    c.rows = rows;
    c.columns = 65;
    c.outputs = 32;
    c.bias = c.accumulate = true;
    c.y_gap = 8;
    c.y_dtype = rows == 12 ? x_dtype() : DType::kF32;
    EXPECT_TRUE(Agrees(Make(c))) << rows << " rows";
  }
}

// Of int8 by the kernel that scales the sums, of fp8 by one after the library, which the emulator
// lets refuse GELU beside a scale per row.
TEST_P(CudaTokensTest, AppliesGelu) {
  SKIP_WITHOUT_GPU();
  for (bool bias : {false, true}) {
    Case c;
    c.rows = 70;
    c.columns = 65;
    c.outputs = 32;
    c.bias = bias;
    c.activation = Activation::kGeluTanh;
    c.y_gap = 8;
    EXPECT_TRUE(Agrees(Make(c))) << "bias " << bias;
  }
}

TEST_P(CudaTokensTest, ASmallWorkspaceTakesATileOfOutputsAtATime) {
  SKIP_WITHOUT_GPU();
  Case c;
  c.rows = 700;
  c.columns = 16;
  c.outputs = 144;
  c.bias = true;
  c.workspace_bytes = 420 << 10;  // of int8 sums of 64 outputs
  EXPECT_TRUE(Agrees(Make(c)));
}

TEST_P(CudaTokensTest, ShapesThatTheLibraryLacksMultiplyTokensAsTheyAre) {
  SKIP_WITHOUT_GPU();
  for (const int64_t outputs : {5, 18}) {
    for (const int64_t gap : {0, 3}) {
      Case c;
      c.rows = 40;
      c.columns = 100;
      c.outputs = outputs;
      c.y_gap = gap;
      const Product p = Make(c);
      EXPECT_TRUE(Agrees(p)) << outputs << " outputs";
      EXPECT_FALSE(p.eight_bits);
    }
  }
}

TEST_P(CudaTokensTest, ActivationsInF32StayAsTheyAre) {
  SKIP_WITHOUT_GPU();
  Case c;
  c.rows = 20;
  c.outputs = 16;
  c.tokens = CudaTokens::kEightBits;
  c.x_dtype = DType::kF32;
  const Product p(std::get<1>(GetParam()), c);
  EXPECT_TRUE(p.Agrees());
  EXPECT_FALSE(p.eight_bits);
}

TEST_P(CudaTokensTest, NaNAndInfinityStayInTheirRow) {
  SKIP_WITHOUT_GPU();
  for (const float bad : {kNaN, std::numeric_limits<float>::infinity()}) {
    Case c;
    c.rows = 11;
    c.columns = 40;
    c.outputs = 16;
    Product p = Make(c);
    const std::vector<float> want = p.Compute();
    p.x[3 * 40 + 7] = bad;
    const std::vector<float> y = p.Compute();
    for (int64_t i = 0; i < 11 * 16; ++i) {
      if (i / 16 == 3) {
        EXPECT_FALSE(std::isfinite(y[i]));
      } else {
        EXPECT_EQ(y[i], want[i]);
      }
    }
  }
}

TEST_P(CudaTokensTest, NoOrderOfThreadsChangesBits) {
  SKIP_WITHOUT_GPU();
  Case c;
  c.rows = 70;
  c.columns = 1300;
  c.outputs = 16;
  EXPECT_TRUE(SameInEveryOrder(Make(c)));
}

TEST_P(CudaTokensTest, RowsOfZerosGiveTheBias) {
  SKIP_WITHOUT_GPU();
  Case c;
  c.rows = 3;
  c.columns = 70;
  c.outputs = 32;
  c.bias = true;
  Product p = Make(c);
  std::fill_n(p.x.begin() + 70, 70, 0.0F);
  const std::vector<float> y = p.Compute(), bias = Rounded(p.c.y_dtype, p.bias);
  for (int64_t o = 0; o < 32; ++o) EXPECT_EQ(y[32 + o], bias[o]);
}

#ifdef PERGOLA_CUDA_EMULATOR
TEST_P(CudaTokensTest, AnAmpereHasInt8AndMultipliesByFp8AsTokensAre) {
  const emulator::DeviceModel hopper = emulator::GetDeviceModel();
  emulator::DeviceModel ampere = hopper;
  ampere.major = 8;
  emulator::SetDeviceModel(ampere);
  Case c;
  c.rows = 130;
  c.columns = 96;
  c.outputs = 32;
  const Product p = Make(c);
  EXPECT_TRUE(Agrees(p));
  EXPECT_EQ(p.eight_bits, int8());
  emulator::SetDeviceModel(hopper);
}
#endif

std::string Names(const testing::TestParamInfo<std::tuple<DType, DType>>& info) {
  return std::string(DTypeName(std::get<0>(info.param))) + "_by_" +
         std::string(DTypeName(std::get<1>(info.param)));
}
INSTANTIATE_TEST_SUITE_P(Types, CudaTokensTest,
                         testing::Combine(testing::Values(DType::kBF16, DType::kF16),
                                          testing::Values(DType::kInt8, DType::kFp8)),
                         Names);

}  // namespace
}  // namespace pergola
