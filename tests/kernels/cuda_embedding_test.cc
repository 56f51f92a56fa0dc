// kernels/cuda/decode_rows.cu as an embedding; products of many rows use it for their tiles.
#include "tests/kernels/cuda_matmul_test_util.h"

namespace pergola {
namespace {

class CudaEmbeddingTest : public testing::TestWithParam<DType> {};

TEST_P(CudaEmbeddingTest, DecodesRowsToTheBitAndZerosElsewhere) {
  SKIP_WITHOUT_GPU();
  const auto last = static_cast<int>(BlockValues(GetParam())) - 1;
  for (int lead : {0, last / 2, last}) {
    for (int64_t columns : {3, 260, 577}) {
      const Weights w = MakeWeights(GetParam(), 10, columns, lead);
      const std::vector<int32_t> ids = {100, 109, 99, 104, 110, 0, 101};
      Gpu gpu;
      const DeviceBytes image(w.image.data(), w.image.size());
      const DeviceBytes ids_device(ids.data(), ids.size() * 4);
      const std::vector<float> old(ids.size() * static_cast<size_t>(columns), kNaN);
      const DeviceBytes y(old.data(), old.size() * 4);
      CudaEmbeddingArgs args;
      args.table = w.matrix;
      args.table.data = static_cast<const uint8_t*>(image.data());
      args.first_row = 100;
      args.ids = Tensor(ids_device.data(), DType::kI32, {static_cast<int64_t>(ids.size())});
      args.y = Tensor(y.data(), DType::kF32, {static_cast<int64_t>(ids.size()), columns});
      EmbeddingCuda(gpu.context, args);
      std::vector<float> want(old.size());
      for (size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] < 100 || ids[i] >= 110) continue;
        w.packed.UnpackRow(ids[i] - 100, want.data() + i * static_cast<size_t>(columns));
      }
      EXPECT_TRUE(CompareBits(ToFloats(DType::kF32, y.Read()), want))
          << "lead " << lead << ", " << columns << " columns";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaEmbeddingTest, testing::ValuesIn(kAllWeights), TypeName);

}  // namespace
}  // namespace pergola
