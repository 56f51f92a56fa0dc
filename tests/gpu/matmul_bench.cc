#include "tests/gpu/matmul_bench.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/matmul.h"
#include "tests/gpu/report.h"
#include "tests/gpu/timing.h"
#include "tests/kernels/cuda/activations.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr DType kFormats[] = {DType::kBF16, DType::kInt8, DType::kQ8_0, DType::kQ4_1, DType::kQ4_K,
                              DType::kQ5_K, DType::kQ6_K, DType::kQ3_K, DType::kQ2_K};
constexpr int64_t kRows[] = {1, 2, 4, 8, 16, 32};

// A matrix as it lies on the device: some random rows again and again.
std::vector<uint8_t> RandomImage(const CudaMatrix& matrix) {
  const int64_t distinct = std::min<int64_t>(matrix.rows, 64);
  int64_t row_bytes = DTypeBytes(matrix.dtype, matrix.columns);
  std::vector<uint8_t> file;
  if (matrix.dtype == DType::kInt8) {
    row_bytes += 4;
    file = RandomFileRows(DType::kQ8_0, distinct, (row_bytes + 33) / 34 * 32, 3);
    file.resize(static_cast<size_t>(distinct * row_bytes));
    const float scale = 0.01F;
    for (int64_t row = 0; row < distinct; ++row) {
      std::memcpy(&file[static_cast<size_t>(row * row_bytes)], &scale, 4);
    }
  } else {
    file = RandomFileRows(matrix.dtype, distinct, matrix.columns, 3);
  }
  std::vector<uint8_t> image(
      static_cast<size_t>(CudaMatrixBytes(matrix.dtype, matrix.rows, matrix.columns)));
  for (int64_t row = 0; row < matrix.rows; row += distinct) {
    PackCudaRows(matrix, row, std::min(distinct, matrix.rows - row), file.data(), row_bytes,
                 image.data());
  }
  return image;
}

// Seconds of one product, as the median of groups that go through `copies` of the matrix: more
// bytes than any cache has.
double TimeProduct(const CudaContext& context, CudaMatmulArgs args, const DeviceArray<uint8_t>& all,
                   int64_t copies, int repeats) {
  const int64_t bytes = all.size() / copies;
  const double s = Seconds(context, repeats, [&] {
    for (int64_t copy = 0; copy < copies; ++copy) {
      args.w.data = all.data() + copy * bytes;
      MatmulCuda(context, args);
    }
  });
  return s / static_cast<double>(copies);
}

void BenchFormat(DType dtype, const Roofs& roofs, bool tiny, CudaContext context) {
  CudaMatrix matrix;
  matrix.dtype = dtype;
  matrix.rows = tiny ? 64 : 14336;
  matrix.columns = tiny ? 256 : 4096;
  const std::vector<uint8_t> image = RandomImage(matrix);
  const auto bytes = static_cast<int64_t>(image.size());
  const int64_t copies = tiny ? 2 : (int64_t{512} << 20) / bytes + 1;
  const DeviceArray<uint8_t> all(bytes * copies);
  for (int64_t copy = 0; copy < copies; ++copy) {
    PERGOLA_CUDA_CHECK(
        cudaMemcpy(all.data() + copy * bytes, image.data(), image.size(), cudaMemcpyHostToDevice));
  }
  const int64_t most = *std::max_element(std::begin(kRows), std::end(kRows));
  const DeviceArray<uint8_t> x(ToBytes(DType::kBF16, RandomValues(most * matrix.columns, 5))),
      y(most * matrix.rows * 2);
  std::string shares, speeds;
  for (const int64_t rows : kRows) {
    CudaMatmulArgs args;
    args.x = Tensor(x.data(), DType::kBF16, {rows, matrix.columns});
    args.w = matrix;
    args.y = Tensor(y.data(), DType::kBF16, {rows, matrix.rows});
    const double s = TimeProduct(context, args, all, copies, tiny ? 1 : 10);
    const double share = static_cast<double>(bytes) / s / roofs.read_bytes;
    shares += Text("%s%.0f", shares.empty() ? "" : " ", 100 * share);
    speeds += Text("%s%.0f", speeds.empty() ? "" : " ", static_cast<double>(bytes) / s * 1e-9);
  }
  Report("product", std::string(DTypeName(dtype)) + " weights, rows 1 2 4 8 16 32",
         shares + " % of read bandwidth", "", Verdict::kInfo);
  std::printf("product %s: %s GB/s\n", std::string(DTypeName(dtype)).c_str(), speeds.c_str());
}

}  // namespace

void BenchProducts(const Roofs& roofs, bool tiny) {
  const TestCudaContext made(int64_t{64} << 20);
  CudaContext context = made;
  auto dense = DenseProduct::Create();
  PERGOLA_CHECK(dense.ok());
  context.dense = dense->get();
  for (const DType dtype : kFormats) BenchFormat(dtype, roofs, tiny, context);
}

}  // namespace pergola
