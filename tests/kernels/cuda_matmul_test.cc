// What the products of kernels/cuda/matmul.h do beyond Matmul's contract (matmul_test.cc): strides
// of y, splits, tiles and orders, and weights of eight bits by tokens as they are; on a GPU, or
// compiled against the emulator on the CPU.
#include <tuple>

#include "tests/kernels/cuda_matmul_test_util.h"

namespace pergola {
namespace {

class CudaMatmulTest : public testing::TestWithParam<std::tuple<DType, DType>> {
 protected:
  DType x_dtype() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  bool blocks() const { return BlockValues(dtype()) > 1; }
};

TEST_P(CudaMatmulTest, AgreesForOddShapesAndLeads) {
  SKIP_WITHOUT_GPU();
  const auto last = static_cast<int>(BlockValues(dtype())) - 1;
  const int64_t shapes[][2] = {{1, 1}, {7, 3}, {128, 37}, {520, 16}};
  for (const auto& shape : shapes) {
    for (int lead : {0, last / 2, last / 16 * 8, last}) {
      for (int64_t rows : {1, 9}) {
        Case c;
        c.x_dtype = x_dtype();
        c.rows = rows;
        c.columns = shape[0];
        c.outputs = shape[1];
        c.lead = lead;
        EXPECT_TRUE(Product(dtype(), c).Agrees())
            << rows << " rows, K " << c.columns << ", outputs " << c.outputs << ", lead " << lead;
        if (last == 0) break;
      }
    }
  }
}

TEST_P(CudaMatmulTest, AgreesForWholeUnits) {
  SKIP_WITHOUT_GPU();
  const int64_t shapes[][2] = {{256, 37}, {1280, 20}, {2048, 150}};
  for (const auto& shape : shapes) {
    for (int64_t rows : {1, 8, 11, 35, 64}) {
      if (shape[1] == 150 && rows != 11 && rows != 35) continue;
      for (int multiprocessors : {1, 132}) {  // blocks with many tiles, splits of K
        Case c;
        c.x_dtype = x_dtype();
        c.rows = rows;
        c.columns = shape[0];
        c.outputs = shape[1];
        c.multiprocessors = multiprocessors;
        EXPECT_TRUE(Product(dtype(), c).Agrees())
            << rows << " rows, K " << c.columns << ", outputs " << c.outputs << ", "
            << multiprocessors << " multiprocessors";
      }
    }
  }
}

TEST_P(CudaMatmulTest, AddsBiasAndAccumulatesBetweenOtherParts) {
  SKIP_WITHOUT_GPU();
  for (int64_t rows : {1, 6, 18, 40, 130}) {
    for (bool accumulate : {false, true}) {
      Case c;
      c.x_dtype = x_dtype();
      c.y_dtype = rows == 6 || rows == 130 ? x_dtype() : DType::kF32;
      c.rows = rows;
      c.columns = 72;
      c.outputs = 17;
      c.bias = true;
      c.accumulate = accumulate;
      c.y_gap = 5;
      EXPECT_TRUE(Product(dtype(), c).Agrees()) << rows << " rows";
    }
  }
}

TEST_P(CudaMatmulTest, AppliesGeluBetweenOtherParts) {
  SKIP_WITHOUT_GPU();
  for (int64_t rows : {1, 18, 130}) {
    for (bool bias : {false, true}) {
      Case c;
      c.x_dtype = x_dtype();
      c.y_dtype = rows == 18 ? DType::kF32 : x_dtype();
      c.rows = rows;
      c.columns = 72;
      c.outputs = 20;
      c.bias = bias;
      c.activation = Activation::kGeluTanh;
      c.y_gap = 5;
      EXPECT_TRUE(Product(dtype(), c).Agrees()) << rows << " rows, bias " << bias;
    }
  }
}

TEST_P(CudaMatmulTest, SplitsLongRowsOfFewOutputs) {
  SKIP_WITHOUT_GPU();
  Case c;
  c.x_dtype = x_dtype();
  c.rows = 3;
  c.columns = 4352;
  c.outputs = 5;
  c.bias = true;
  EXPECT_TRUE(Product(dtype(), c).Agrees());
  c.activation = Activation::kGeluTanh;
  EXPECT_TRUE(Product(dtype(), c).Agrees());
}

TEST_P(CudaMatmulTest, ASmallWorkspaceDecodesATileOfOutputsAtATime) {
  SKIP_WITHOUT_GPU();
  Case c;
  c.x_dtype = x_dtype();
  c.rows = 130;
  c.columns = 72;
  c.outputs = 150;
  c.bias = true;
  c.y_gap = 2;
  c.workspace_bytes = 24 << 10;  // tiles of 64
  EXPECT_TRUE(Product(dtype(), c).Agrees());
}

TEST_P(CudaMatmulTest, NoOrderOfThreadsChangesBits) {
  SKIP_WITHOUT_GPU();
  for (int64_t rows : {2, 19, 40}) {
    Case c;
    c.x_dtype = x_dtype();
    c.rows = rows;
    c.columns = rows == 2 ? 4352 : 300;
    c.outputs = 21;
    EXPECT_TRUE(SameInEveryOrder(Product(dtype(), c))) << rows << " rows";
    c.columns = 512;
    c.outputs = 150;
    c.multiprocessors = 1;
    EXPECT_TRUE(SameInEveryOrder(Product(dtype(), c))) << rows << " rows, whole units";
  }
}

// int8 is another contract on the CPU, and fp8 is not there.
class CudaEightBitTest : public CudaMatmulTest {};

TEST_P(CudaEightBitTest, AgreesWithTheReferenceWithinTheBound) {
  SKIP_WITHOUT_GPU();
  for (int64_t rows : {0, 1, 2, 3, 5, 8, 17, 32, 33, 70}) {
    Case c;
    c.x_dtype = x_dtype();
    c.rows = rows;
    c.columns = rows % 2 == 0 ? 264 : 131;
    c.outputs = rows == 8 ? 1 : 19;
    c.y_dtype = rows % 3 == 0 ? c.x_dtype : DType::kF32;
    EXPECT_TRUE(Product(dtype(), c).Agrees()) << rows << " rows";
  }
}

TEST_P(CudaEightBitTest, NaNStaysInItsRow) {
  SKIP_WITHOUT_GPU();
  for (int64_t rows : {4, 20}) {
    Case c;
    c.x_dtype = x_dtype();
    c.rows = rows;
    c.columns = 96;
    c.outputs = 18;
    Product p(dtype(), c);
    p.x[3 * 96 + 41] = kNaN;
    const std::vector<float> y = p.Compute();
    for (int64_t i = 0; i < rows * 18; ++i) {
      EXPECT_EQ(std::isnan(y[i]), i / 18 == 3) << "value " << i << " is " << y[i];
    }
  }
}

std::string Names(const testing::TestParamInfo<std::tuple<DType, DType>>& info) {
  return std::string(DTypeName(std::get<0>(info.param))) + "_by_" +
         std::string(DTypeName(std::get<1>(info.param)));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaEightBitTest,
                         testing::Combine(testing::ValuesIn(kActivations),
                                          testing::Values(DType::kInt8, DType::kFp8)),
                         Names);
INSTANTIATE_TEST_SUITE_P(Types, CudaMatmulTest,
                         testing::Combine(testing::ValuesIn(kActivations),
                                          testing::ValuesIn(kAllWeights)),
                         Names);

TEST(CudaMatmulDeathTest, RefusesShapesThatDoNotFit) {
  const CudaContext context;
  CudaMatmulArgs args;
  args.w = {DType::kF32, 8, 8, 0, nullptr};
  args.x = Tensor(nullptr, DType::kF32, {2, 7});
  args.y = Tensor(nullptr, DType::kF32, {2, 8});
  EXPECT_DEATH(MatmulCuda(context, args), "x has 7 columns, the weights 8");
  args.x = Tensor(nullptr, DType::kF32, {2, 8});
  args.y_stride = 7;
  EXPECT_DEATH(MatmulCuda(context, args), "CHECK failed");
}

}  // namespace
}  // namespace pergola
