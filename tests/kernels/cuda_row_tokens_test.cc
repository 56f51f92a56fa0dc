// Norms and activations whose tokens in eight bits are made where y would be written
// (kernels/cuda/row_tokens.cu): the bits of the op and then the product.
#include <tuple>

#include "kernels/decoder_ops.h"
#include "tests/kernels/cuda_matmul_test_util.h"

namespace pergola {
namespace {

constexpr float kUntouched = -7.0F;
constexpr int64_t kPrompt = 130;  // rows: more than stream weights

struct Result {
  std::vector<float> y, product, x;
};

// By dtype of activations and of weights.
class CudaRowTokensTest : public testing::TestWithParam<std::tuple<DType, DType>> {
 protected:
  static DType dtype() { return std::get<0>(GetParam()); }
  static bool int8() { return std::get<1>(GetParam()) == DType::kInt8; }

  // A product of `columns` by 32 outputs, and what its x is made of.
  struct Scene {
    explicit Scene(int64_t row_count, int64_t column_count)
        : device({Device::kCuda, CpuTarget::kPortable, dtype()}),
          rows(row_count),
          columns(column_count),
          weights(MakeWeights(std::get<1>(GetParam()), kOutputs, columns, 0)),
          matrix(PackedMatrix::Allocate(device.stream(), std::get<1>(GetParam()), kOutputs, columns,
                                        0)),
          y(device, dtype(), rows, columns, std::vector<float>(Values(), kUntouched)),
          out(device, dtype(), rows, kOutputs, std::vector<float>(rows * kOutputs)),
          bias(device, RandomValues(kOutputs, 11)) {
      PackWhole(device.stream(), weights.file.data(), weights.row_bytes, &matrix);
    }
    size_t Values() const { return static_cast<size_t>(rows * columns); }
    MatmulArgs ProductOfY() const {
      MatmulArgs args;
      args.x = y.tensor();
      args.w = &matrix;
      args.bias = bias.data();
      args.y = out.tensor();
      return args;
    }

    static constexpr int64_t kOutputs = 32;
    OpDevice device;
    const int64_t rows, columns;
    const Weights weights;
    PackedMatrix matrix;
    const OpTensor y, out;
    const OnDevice<float> bias;
  };

  static void OneAfterTheOther(Stream& stream, const RmsNormArgs& args, const MatmulArgs& product) {
    RmsNorm(stream, args);
    Matmul(stream, product);
  }
  static void OneAfterTheOther(Stream& stream, const LayerNormArgs& args,
                               const MatmulArgs& product) {
    LayerNorm(stream, args);
    Matmul(stream, product);
  }
  static void SetBias(RmsNormArgs* /*args*/, const float* /*bias*/) {}
  static void SetBias(LayerNormArgs* args, const float* bias) { args->bias = bias; }

  // Every 29th column of the norm is an outlier of int8, or nearly one; row 2 has zeros alone.
  template <typename Args>
  static Result OfNorm(int64_t rows, int64_t columns, bool residual, bool as_one) {
    Scene scene(rows, columns);
    std::vector<float> values = RandomValues(rows * columns, 1), weight = RandomValues(columns, 2);
    for (int64_t i = 0; i < columns; i += 29) weight[i] = 8;
    std::vector<float> added = Rounded(dtype(), RandomValues(rows * columns, 4));
    for (auto* row : {&values, &added}) std::fill_n(row->begin() + 2 * columns, columns, 0.0F);
    const OpTensor x(scene.device, DType::kF32, rows, columns, values);
    const OpTensor branch(scene.device, dtype(), rows, columns, added);
    const OnDevice<float> weights(scene.device, weight);
    const OnDevice<float> bias(scene.device, RandomValues(columns, 3));
    Args args;
    args.x = x.tensor();
    if (residual) args.residual = branch.tensor();
    args.weight = weights.data();
    SetBias(&args, bias.data());
    args.epsilon = 1e-5F;
    args.y = scene.y.tensor();
    if (as_one) {
      NormMatmul(scene.device.stream(), args, scene.ProductOfY());
    } else {
      OneAfterTheOther(scene.device.stream(), args, scene.ProductOfY());
    }
    return {scene.y.Read(), scene.out.Read(), x.Read()};
  }

  static Result OfActivation(int64_t rows, int64_t columns, Activation activation, bool as_one) {
    Scene scene(rows, columns);
    std::vector<float> values = RandomValues(2 * rows * columns, 5, 2.0F);
    for (size_t i = 0; i < values.size(); i += 31) values[i] *= 4;
    const OpTensor x(scene.device, dtype(), rows, 2 * columns, Rounded(dtype(), values));
    const ActivateArgs args = {activation, true, x.tensor(), scene.y.tensor()};
    if (as_one) {
      ActivateMatmul(scene.device.stream(), args, scene.ProductOfY());
    } else {
      Activate(scene.device.stream(), args);
      Matmul(scene.device.stream(), scene.ProductOfY());
    }
    return {scene.y.Read(), scene.out.Read(), {}};
  }

  // Of y only outliers were written, each with its value: the tokens were made without it.
  static void ExpectYWasNotWritten(const Result& one, const Result& two) {
#ifdef PERGOLA_CUDA_EMULATOR  // a Hopper: it has tokens of fp8
    size_t written = 0;
    for (size_t i = 0; i < one.y.size(); ++i) {
      if (one.y[i] == kUntouched) continue;
      ++written;
      EXPECT_EQ(one.y[i], two.y[i]);
    }
    EXPECT_EQ(written > 0, int8());
    EXPECT_LT(written, one.y.size() / 10);
#endif
  }
};

TEST_P(CudaRowTokensTest, OfRmsNormTheBitsAreThoseOfTheTwoOps) {
  SKIP_WITHOUT_GPU();
  for (const int64_t columns : {31, 264, 2100}) {
    for (const bool residual : {false, true}) {
      const Result one = OfNorm<RmsNormArgs>(kPrompt, columns, residual, true);
      const Result two = OfNorm<RmsNormArgs>(kPrompt, columns, residual, false);
      EXPECT_TRUE(CompareBits(one.product, two.product)) << columns << " columns";
      EXPECT_TRUE(CompareBits(one.x, two.x));
      ExpectYWasNotWritten(one, two);
    }
  }
}

TEST_P(CudaRowTokensTest, OfLayerNormTheBitsAreThoseOfTheTwoOps) {
  SKIP_WITHOUT_GPU();
  for (const int64_t columns : {33, 264}) {
    const Result one = OfNorm<LayerNormArgs>(kPrompt, columns, true, true);
    const Result two = OfNorm<LayerNormArgs>(kPrompt, columns, true, false);
    EXPECT_TRUE(CompareBits(one.product, two.product)) << columns << " columns";
    EXPECT_TRUE(CompareBits(one.x, two.x));
    ExpectYWasNotWritten(one, two);
  }
}

TEST_P(CudaRowTokensTest, OfActivationsTheBitsAreThoseOfTheTwoOps) {
  SKIP_WITHOUT_GPU();
  for (const Activation activation :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
    for (const int64_t columns : {45, 320}) {
      const Result one = OfActivation(kPrompt, columns, activation, true);
      const Result two = OfActivation(kPrompt, columns, activation, false);
      EXPECT_TRUE(CompareBits(one.product, two.product)) << columns << " columns";
      ExpectYWasNotWritten(one, two);
    }
  }
}

// Few rows multiply activations as they are, and the op writes them.
TEST_P(CudaRowTokensTest, FewRowsGoOneAfterTheOther) {
  SKIP_WITHOUT_GPU();
  const Result one = OfNorm<RmsNormArgs>(9, 64, true, true);
  const Result two = OfNorm<RmsNormArgs>(9, 64, true, false);
  EXPECT_TRUE(CompareBits(one.y, two.y));
  EXPECT_TRUE(CompareBits(one.product, two.product));
}

TEST_P(CudaRowTokensTest, RowsTooLongForSharedMemoryGoOneAfterTheOther) {
  SKIP_WITHOUT_GPU();
  constexpr int64_t kLong = 24592;
  const Result one = OfActivation(kPrompt, kLong, Activation::kSilu, true);
  const Result two = OfActivation(kPrompt, kLong, Activation::kSilu, false);
  EXPECT_TRUE(CompareBits(one.y, two.y));
  EXPECT_TRUE(CompareBits(one.product, two.product));
}

TEST_P(CudaRowTokensTest, NaNAndInfinityStayInTheirRow) {
  SKIP_WITHOUT_GPU();
  constexpr int64_t kColumns = 48;
  for (const float bad : {kNaN, std::numeric_limits<float>::infinity()}) {
    Scene scene(kPrompt, kColumns);
    std::vector<float> values = RandomValues(kPrompt * kColumns, 1);
    values[3 * kColumns + 7] = bad;
    const OpTensor x(scene.device, DType::kF32, kPrompt, kColumns, values);
    const OnDevice<float> weight(scene.device, RandomValues(kColumns, 2));
    NormMatmul(scene.device.stream(),
               RmsNormArgs{x.tensor(), Tensor(), weight.data(), 1e-5F, scene.y.tensor()},
               scene.ProductOfY());
    const std::vector<float> product = scene.out.Read();
    for (int64_t i = 0; i < kPrompt * Scene::kOutputs; ++i) {
      EXPECT_EQ(std::isfinite(product[i]), i / Scene::kOutputs != 3) << i;
    }
  }
}

#ifdef PERGOLA_CUDA_EMULATOR
TEST_P(CudaRowTokensTest, NoOrderOfThreadsChangesBits) {
  const Result want = OfNorm<RmsNormArgs>(kPrompt, 264, true, true);
  for (const auto order : {emulator::Order::kDescending, emulator::Order::kShuffled}) {
    emulator::SetOrder(order, 3);
    EXPECT_TRUE(CompareBits(OfNorm<RmsNormArgs>(kPrompt, 264, true, true).product, want.product));
    emulator::SetOrder(emulator::Order::kAscending);
  }
}
#endif

std::string Names(const testing::TestParamInfo<std::tuple<DType, DType>>& info) {
  return std::string(DTypeName(std::get<0>(info.param))) + "_by_" +
         std::string(DTypeName(std::get<1>(info.param)));
}
INSTANTIATE_TEST_SUITE_P(Types, CudaRowTokensTest,
                         testing::Combine(testing::Values(DType::kBF16, DType::kF16),
                                          testing::Values(DType::kInt8, DType::kFp8)),
                         Names);

TEST(NormMatmulDeathTest, RefusesAProductOfSomethingElse) {
  const auto stream = MakeStream(CpuTarget::kPortable);
  std::vector<float> x(8), y(8), other(8), out(2), weight(4);
  PackedMatrix w = PackedMatrix::Allocate(DType::kF32, 1, 4);
  RmsNormArgs norm;
  norm.x = HostTensor(&x, 2, 4);
  norm.weight = weight.data();
  norm.y = HostTensor(&y, 2, 4);
  MatmulArgs product;
  product.x = HostTensor(&other, 2, 4);
  product.w = &w;
  product.y = HostTensor(&out, 2, 1);
  EXPECT_DEATH(NormMatmul(*stream, norm, product), "product.x.data\\(\\) == y.data");
}

}  // namespace
}  // namespace pergola
