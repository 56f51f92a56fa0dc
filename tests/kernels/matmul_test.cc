// Matmul's contract on every device, and the bits that the CPU promises. What a GPU's products do
// beyond it is in cuda_matmul_test.cc, int8 on the CPU in matmul_int8_test.cc.
#include <limits>
#include <tuple>

#include "tests/kernels/cuda_matmul_test_util.h"

namespace pergola {
namespace {

// By place and dtype of the weights.
using MatmulCase = std::tuple<OpPlace, DType>;

class MatmulTest : public testing::TestWithParam<MatmulCase> {
 protected:
  static OpPlace place() { return std::get<0>(GetParam()); }
  static Case Shape(int64_t rows, int64_t columns, int64_t outputs) {
    Case c;
    c.x_dtype = place().dtype;
    c.rows = rows;
    c.columns = columns;
    c.outputs = outputs;
    return c;
  }
  static void Expect(OpDevice& device, const Case& c) {
    const Product p(std::get<1>(GetParam()), c);
    const std::vector<float> want = p.Want();
    const std::vector<double> bounds = device.on_cpu() ? p.CpuBounds() : p.Bounds(want);
    EXPECT_TRUE(CompareWith(p.ComputeOn(device), want, [&](size_t i) { return bounds[i]; }))
        << c.rows << " rows, K " << c.columns << ", outputs " << c.outputs << ", lead " << c.lead;
  }
};

TEST_P(MatmulTest, AgreesWithTheReferenceWithinTheBound) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  const int64_t shapes[][2] = {{1, 1}, {31, 33}, {32, 32}, {33, 129}, {576, 20}};
  for (const auto& shape : shapes) {
    for (const int64_t rows : {1, 2, 3, 7, 16, 17, 64}) {
      if (!device.on_cpu() && shape[0] == 33 && rows != 17) continue;  // the emulator's time
      Case c = Shape(rows, shape[0], shape[1]);
      if (rows == 7) c.y_dtype = place().dtype;
      Expect(device, c);
    }
  }
}

TEST_P(MatmulTest, AddsBiasAndAccumulates) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  for (const int64_t rows : {1, 5, 17}) {
    Case c = Shape(rows, 65, 70);
    c.bias = c.accumulate = true;
    Expect(device, c);
  }
}

// One row streams, 20 go the library's way where the weights have x's dtype, 130 of all dtypes.
TEST_P(MatmulTest, AppliesTheActivationToTheSum) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  for (const Activation activation :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
    for (const int64_t rows : {1, 20, 130}) {
      if (rows == 130 && activation != Activation::kGeluTanh) continue;  // the emulator's time
      Case c = Shape(rows, 65, 40);
      c.bias = rows != 1;
      c.y_dtype = place().dtype;
      c.activation = activation;
      Expect(device, c);
    }
  }
}

TEST_P(MatmulTest, AgreesForCutsInsideABlock) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  const auto last = static_cast<int>(BlockValues(std::get<1>(GetParam()))) - 1;
  for (const int lead : {5, last / 2, last}) {
    if (lead > last) continue;
    Case c = Shape(3, 50, 20);
    c.lead = lead;
    Expect(device, c);
  }
}

TEST_P(MatmulTest, NoRowsWriteNothing) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  EXPECT_TRUE(Product(std::get<1>(GetParam()), Shape(0, 32, 32)).ComputeOn(device).empty());
}

TEST_P(MatmulTest, NaNStaysInItsRow) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  for (const int64_t rows : {4, 20}) {
    Product p(std::get<1>(GetParam()), Shape(rows, 96, 18));
    p.x[3 * 96 + 41] = kNaN;
    const std::vector<float> y = p.ComputeOn(device);
    for (int64_t i = 0; i < rows * 18; ++i) EXPECT_EQ(std::isnan(y[i]), i / 18 == 3) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Places, MatmulTest,
                         testing::Combine(testing::ValuesIn(AllPlaces()),
                                          testing::ValuesIn(kWeightTypes)),
                         [](const testing::TestParamInfo<MatmulCase>& test) {
                           return PlaceName(std::get<0>(test.param)) + "_" +
                                  std::string(DTypeName(std::get<1>(test.param)));
                         });

// Products for comparing bits of the CPU's targets.
struct BitsProduct {
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

BitsProduct MakeProduct(DType dtype, int64_t rows, int64_t columns, int64_t outputs, int lead = 0) {
  BitsProduct p;
  p.rows = rows;
  p.w = RandomMatrix(dtype, outputs, columns, 7, lead);
  p.x = RandomValues(rows * columns, 8);
  p.y = RandomValues(rows * outputs, 9);  // old contents: overwritten
  return p;
}

std::vector<float> Compute(BitsProduct* p, CpuTarget target, int threads) {
  std::vector<float> y = p->y;
  const auto stream = MakeStream(target, threads);
  Matmul(*stream, p->Args(&y));
  return y;
}

std::string TargetAndType(const testing::TestParamInfo<std::tuple<CpuTarget, DType>>& info) {
  return std::string(CpuTargetName(std::get<0>(info.param))) + "_" +
         std::string(DTypeName(std::get<1>(info.param)));
}

class MatmulTargetTest : public testing::TestWithParam<std::tuple<CpuTarget, DType>> {
 protected:
  CpuTarget target() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
};

// Weights in blocks only: dense rows have no block to cut.
class MatmulCutTest : public MatmulTargetTest {};

TEST_P(MatmulCutTest, CutInsideABlockGivesTheBitsOfTheSameValuesInF32) {
  SKIP_WITHOUT(target());
  const int last = static_cast<int>(BlockValues(dtype())) - 1;
  for (int lead : {0, 5, last / 2, last}) {
    for (int64_t columns : {1, 50, 300}) {
      for (int64_t rows : {1, 2, 16, 50}) {
        BitsProduct p = MakeProduct(dtype(), rows, columns, 140, lead);
        BitsProduct dense = MakeProduct(DType::kF32, rows, columns, 140);
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
class MatmulBitsTest : public MatmulTargetTest {};

TEST_P(MatmulBitsTest, OneRowHasTheBitsItHasAmongMany) {
  SKIP_WITHOUT(target());
  // The portable path calls the C library for each multiply-add: fewer of them.
  const bool slow = target() == CpuTarget::kPortable;
  const int64_t columns = slow ? 530 : 1100, outputs = slow ? 35 : 70;
  const int64_t most = slow ? 70 : 512;
  BitsProduct all = MakeProduct(dtype(), most, columns, outputs);
  const std::vector<float> want = Compute(&all, target(), 1);
  for (int64_t rows = 1; rows <= 64; ++rows) {
    // The batch ends with the last row, so a row's place changes with the batch.
    BitsProduct some = MakeProduct(dtype(), rows, columns, outputs);
    some.x.assign(all.x.end() - rows * columns, all.x.end());
    const std::vector<float> tail(want.end() - rows * outputs, want.end());
    ASSERT_TRUE(CompareBits(Compute(&some, target(), 1), tail)) << rows << " rows";
  }
}

TEST_P(MatmulBitsTest, ThreadsDoNotChangeBits) {
  SKIP_WITHOUT(target());
  for (int64_t rows : {1, 3, 50}) {
    for (int64_t outputs : {1, 33, 300}) {
      BitsProduct p = MakeProduct(dtype(), rows, 130, outputs);
      const std::vector<float> want = Compute(&p, target(), 1);
      for (int threads : {2, 3, 5}) {
        EXPECT_TRUE(CompareBits(Compute(&p, target(), threads), want)) << threads << " threads";
      }
    }
  }
}

TEST_P(MatmulBitsTest, EqualsTheExplicitChainOfFusedMultiplyAdds) {
  SKIP_WITHOUT(target());
  BitsProduct p = MakeProduct(dtype(), 3, 77, 40);
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

TEST(MatmulLongTest, RowsTooLongForTheScratchKeepTheirBits) {
  // 12 rows of 2 MiB / 48 and 2 rows of 2 MiB / 8 bytes are the limits of packing.
  for (int64_t columns : {int64_t{50000}, int64_t{300000}}) {
    BitsProduct p = MakeProduct(DType::kBF16, 3, columns, 3);
    const auto y = Compute(&p, CpuTarget::kPortable, 2);
    BitsProduct last = MakeProduct(DType::kBF16, 1, columns, 3);
    last.x.assign(p.x.end() - columns, p.x.end());
    for (CpuTarget target : kFastTargets) {
      if (!CpuTargetSupported(target)) continue;
      EXPECT_TRUE(CompareBits(Compute(&p, target, 1), y));
      EXPECT_TRUE(CompareBits(Compute(&last, target, 1), {y.end() - 3, y.end()}));
    }
  }
}

TEST(MatmulDeathTest, RefusesShapesThatDoNotFit) {
  BitsProduct p = MakeProduct(DType::kF32, 2, 8, 8);
  std::vector<float> y(16);
  MatmulArgs args = p.Args(&y);
  args.x = Tensor(p.x.data(), DType::kF32, {2, 7});
  const auto stream = MakeStream(CpuTarget::kPortable, 1);
  EXPECT_DEATH(Matmul(*stream, args), "x has 7 columns, the weights 8");
}

}  // namespace
}  // namespace pergola
