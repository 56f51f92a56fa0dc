// Products and embeddings of kernels/cuda/matmul.h: on a GPU, or compiled against the emulator on
// the CPU.
#include <cuda_runtime.h>

#include <limits>
#include <tuple>

#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/matmul.h"
#include "kernels/int8.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

#ifdef PERGOLA_CUDA_EMULATOR
#include "kernels/cuda/emulator/emulator.h"
#endif

namespace pergola {
namespace {

constexpr DType kActivations[] = {DType::kF32, DType::kBF16, DType::kF16};
constexpr DType kAllWeights[] = {DType::kF32,  DType::kBF16, DType::kF16,   DType::kInt8,
                                 DType::kQ8_0, DType::kQ4_0, DType::kQ4_1,  DType::kQ5_0,
                                 DType::kQ5_1, DType::kQ2_K, DType::kQ3_K,  DType::kQ4_K,
                                 DType::kQ5_K, DType::kQ6_K, DType::kIQ4_NL};
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// Device memory with a copy of host bytes.
class DeviceBytes {
 public:
  DeviceBytes(const void* from, size_t bytes) : bytes_(bytes) {
    EXPECT_EQ(cudaMalloc(&data_, bytes + 1), cudaSuccess);
    if (bytes == 0) return;
    EXPECT_EQ(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~DeviceBytes() { cudaFree(data_); }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  void* data() const { return data_; }
  std::vector<uint8_t> Read() const {
    std::vector<uint8_t> host(bytes_);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    if (bytes_ > 0) {
      EXPECT_EQ(cudaMemcpy(host.data(), data_, bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    }
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

std::vector<uint8_t> Encode(DType dtype, const std::vector<float>& values) {
  std::vector<uint8_t> bytes(values.size() * static_cast<size_t>(BlockBytes(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = dtype == DType::kBF16 ? F32ToBF16(values[i]) : F32ToF16(values[i]);
    if (dtype == DType::kF32) {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    } else {
      std::memcpy(&bytes[2 * i], &half, 2);
    }
  }
  return bytes;
}

std::vector<float> Decode(DType dtype, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(BlockBytes(dtype)));
  if (!values.empty()) {
    DecodeToF32(dtype, bytes.data(), static_cast<int64_t>(values.size()), values.data());
  }
  return values;
}

std::vector<float> Rounded(DType dtype, const std::vector<float>& values) {
  return Decode(dtype, Encode(dtype, values));
}

// Unit roundoff of a 16-bit type; f32 0: its roundings are counted where they happen.
double RoundoffOf(DType dtype) {
  return dtype == DType::kBF16 ? 0x1p-8 : dtype == DType::kF16 ? 0x1p-11 : 0;
}

// The same weights for the reference and for the GPU.
struct Weights {
  PackedMatrix packed;
  std::vector<uint8_t> image;
  std::vector<double> sizes;  // |s q| + |m| of each
  CudaMatrix matrix;          // data null
};

Weights MakeWeights(DType dtype, int64_t outputs, int64_t columns, int lead) {
  Weights w;
  w.matrix = {dtype, outputs, columns, lead, nullptr};
  w.packed = PackedMatrix::Allocate(dtype, outputs, columns, lead);
  w.image.resize(static_cast<size_t>(CudaMatrixBytes(dtype, outputs, columns, lead)));
  const int64_t block = BlockValues(dtype);
  const int64_t covered = (lead + columns + block - 1) / block * block;
  int64_t row_bytes = DTypeBytes(dtype, covered);
  std::vector<uint8_t> file;
  if (dtype == DType::kInt8) {
    row_bytes += 4;
    file.resize(static_cast<size_t>(outputs * row_bytes));
    for (int64_t o = 0; o < outputs; ++o) {
      const auto values = RandomValues(columns, static_cast<uint32_t>(100 + o));
      const Int8Steps steps = StepsOfRow(values.data(), columns);
      std::memcpy(&file[o * row_bytes], &steps.scale, 4);
      QuantizeInt8(values.data(), columns, steps,
                   reinterpret_cast<int8_t*>(&file[o * row_bytes + 4]));
    }
  } else {
    file = RandomFileRows(dtype, outputs, covered, 7);
  }
  w.packed.PackRows(0, outputs, file.data(), row_bytes);
  PackCudaRows(w.matrix, 0, outputs, file.data(), row_bytes, w.image.data());
  // Without minima the format's values are s q alone.
  PackedMatrix plain = PackedMatrix::Allocate(dtype, outputs, columns, lead);
  const BlockHalves halves = HalvesOf(dtype);
  if (halves.count == 2) {
    const auto second = static_cast<size_t>(halves.offset + 2);
    for (size_t at = 0; at < file.size(); at += static_cast<size_t>(BlockBytes(dtype))) {
      file[at + second] = file[at + second + 1] = 0;
    }
  }
  plain.PackRows(0, outputs, file.data(), row_bytes);
  std::vector<float> value(static_cast<size_t>(columns)), product(value.size());
  for (int64_t o = 0; o < outputs; ++o) {
    w.packed.UnpackRow(o, value.data());
    plain.UnpackRow(o, product.data());
    for (int64_t k = 0; k < columns; ++k) {
      w.sizes.push_back(std::abs(static_cast<double>(product[k])) +
                        std::abs(static_cast<double>(value[k]) - product[k]));
    }
  }
  return w;
}

struct Case {
  DType x_dtype = DType::kBF16, y_dtype = DType::kF32;
  int64_t rows = 1, columns = 32, outputs = 8;
  int lead = 0;
  bool bias = false, accumulate = false;
  int64_t y_gap = 0;  // y_stride - outputs
  CudaInt8Product int8_product = CudaInt8Product::kActivations;
};

class Gpu {
 public:
  Gpu() : workspace_(std::vector<uint8_t>(kWorkspaceBytes).data(), kWorkspaceBytes) {
    context.compute_capability = 90;
    context.multiprocessors = 132;
    context.workspace = static_cast<uint8_t*>(workspace_.data());
    context.workspace_bytes = kWorkspaceBytes;
    auto made = DenseProduct::Create();
    EXPECT_TRUE(made.ok()) << made.status();
    if (made.ok()) dense_ = *std::move(made);
    context.dense = dense_.get();
  }
  static bool Exists() {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }
  CudaContext context;

 private:
  static constexpr int64_t kWorkspaceBytes = 4 << 20;
  DeviceBytes workspace_;
  std::unique_ptr<DenseProduct> dense_;
};

// A product with its reference.
struct Product {
  Case c;
  Weights w;
  std::vector<float> x, bias, y;  // y: [rows, outputs + gap], old contents

  Product(DType dtype, const Case& from)
      : c(from), w(MakeWeights(dtype, c.outputs, c.columns, c.lead)) {
    x = Rounded(c.x_dtype, RandomValues(c.rows * c.columns, 8));
    if (c.bias) bias = RandomValues(c.outputs, 10);
    y = Rounded(c.y_dtype, RandomValues(c.rows * (c.outputs + c.y_gap), 9));
  }
  DType dtype() const { return w.matrix.dtype; }

  std::vector<float> Compute() const {
    Gpu gpu;
    const auto x_bytes = Encode(c.x_dtype, x), y_bytes = Encode(c.y_dtype, y);
    const DeviceBytes x_device(x_bytes.data(), x_bytes.size());
    const DeviceBytes y_device(y_bytes.data(), y_bytes.size());
    const DeviceBytes w_device(w.image.data(), w.image.size());
    const DeviceBytes bias_device(bias.data(), bias.size() * 4);
    CudaMatmulArgs args;
    args.x = Tensor(x_device.data(), c.x_dtype, {c.rows, c.columns});
    args.w = w.matrix;
    args.w.data = static_cast<const uint8_t*>(w_device.data());
    args.bias = c.bias ? static_cast<const float*>(bias_device.data()) : nullptr;
    args.accumulate = c.accumulate;
    args.y = Tensor(y_device.data(), c.y_dtype, {c.rows, c.outputs});
    args.y_stride = c.outputs + c.y_gap;
    args.int8_product = c.int8_product;
    MatmulCuda(gpu.context, args);
    return Decode(c.y_dtype, y_device.Read());
  }

  // MatmulRef's result, in y's place. Of int8 by activations as they are: by its values in f32.
  std::vector<float> Want() const {
    const bool tokens = c.int8_product == CudaInt8Product::kTokens;
    PackedMatrix values;
    const PackedMatrix* matrix = &w.packed;
    if (dtype() == DType::kInt8 && !tokens) {
      values = PackedMatrix::Allocate(DType::kF32, c.outputs, c.columns);
      std::vector<float> row(static_cast<size_t>(c.columns));
      for (int64_t o = 0; o < c.outputs; ++o) {
        w.packed.UnpackRow(o, row.data());
        values.PackRows(o, 1, row.data(), c.columns * 4);
      }
      matrix = &values;
    }
    std::vector<float> dense(static_cast<size_t>(c.rows * c.outputs)), in = x, add = bias;
    for (int64_t i = 0; i < c.rows * c.outputs; ++i) dense[i] = y[At(i)];
    MatmulArgs args;
    args.x = Tensor(in.data(), DType::kF32, {c.rows, c.columns});
    args.w = matrix;
    args.bias = c.bias ? add.data() : nullptr;
    args.accumulate = c.accumulate;
    args.y = Tensor(dense.data(), DType::kF32, {c.rows, c.outputs});
    MatmulRef(args);
    std::vector<float> want = y;
    for (int64_t i = 0; i < c.rows * c.outputs; ++i) want[At(i)] = dense[i];
    return want;
  }

  // The bound of kernels/cuda/matmul.h with the rounding of y, of the reference and of a 16-bit
  // bias; 0 between the rows.
  std::vector<double> Bounds(const std::vector<float>& want) const {
    const bool tokens = c.int8_product == CudaInt8Product::kTokens;
    const bool rounded = !tokens && dtype() != c.x_dtype;  // if weights are decoded to 16 bits
    std::vector<double> bounds(y.size());
    for (int64_t i = 0; i < c.rows * c.outputs; ++i) {
      const int64_t r = i / c.outputs, o = i % c.outputs;
      double sum = 0;
      for (int64_t k = 0; k < c.columns; ++k) {
        const double value = std::abs(static_cast<double>(x[r * c.columns + k]));
        sum += value * w.sizes[o * c.columns + k];
      }
      const double add = (c.bias ? std::abs(static_cast<double>(bias[o])) : 0) +
                         (c.accumulate ? std::abs(static_cast<double>(y[At(i)])) : 0);
      const double terms = static_cast<double>(c.columns) + 8;
      bounds[At(i)] = terms * 0x1p-23 * (sum + add) + RoundoffOf(c.y_dtype) * std::abs(want[At(i)]);
      if (c.bias) bounds[At(i)] += RoundoffOf(c.y_dtype) * std::abs(static_cast<double>(bias[o]));
      if (rounded && DecodesWeights()) bounds[At(i)] += RoundoffOf(c.x_dtype) * sum;
      // The last rounding may be of a value that the other errors have moved.
      bounds[At(i)] *= 1 + 2 * RoundoffOf(c.y_dtype);
    }
    return bounds;
  }
  bool DecodesWeights() const {
    const bool dense = BlockValues(dtype()) == 1 && dtype() != DType::kInt8;
    return dense || c.rows > 128;
  }
  // Where element i of [rows, outputs] lies in y.
  int64_t At(int64_t i) const { return i / c.outputs * (c.outputs + c.y_gap) + i % c.outputs; }

  testing::AssertionResult Agrees() const {
    const std::vector<float> want = Want();
    const std::vector<double> bounds = Bounds(want);
    return CompareWith(Compute(), want, [&](size_t i) { return bounds[i]; });
  }
};

#define SKIP_WITHOUT_GPU() \
  if (!Gpu::Exists()) GTEST_SKIP() << "no CUDA device"

class CudaMatmulTest : public testing::TestWithParam<std::tuple<DType, DType>> {
 protected:
  DType x_dtype() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }
  bool blocks() const { return BlockValues(dtype()) > 1; }
};

TEST_P(CudaMatmulTest, AgreesWithTheReferenceWithinTheBound) {
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

TEST_P(CudaMatmulTest, SplitsLongRowsOfFewOutputs) {
  SKIP_WITHOUT_GPU();
  Case c;
  c.x_dtype = x_dtype();
  c.rows = 3;
  c.columns = 4352;
  c.outputs = 5;
  c.bias = true;
  EXPECT_TRUE(Product(dtype(), c).Agrees());
}

TEST_P(CudaMatmulTest, NaNStaysInItsRow) {
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

#ifdef PERGOLA_CUDA_EMULATOR
TEST_P(CudaMatmulTest, NoOrderOfThreadsChangesBits) {
  for (int64_t rows : {2, 19}) {
    Case c;
    c.x_dtype = x_dtype();
    c.rows = rows;
    c.columns = rows == 2 ? 4352 : 300;
    c.outputs = 21;
    const Product p(dtype(), c);
    emulator::SetOrder(emulator::Order::kAscending);
    const std::vector<float> want = p.Compute();
    emulator::SetOrder(emulator::Order::kDescending);
    EXPECT_TRUE(CompareBits(p.Compute(), want));
    emulator::SetOrder(emulator::Order::kShuffled, 3);
    EXPECT_TRUE(CompareBits(p.Compute(), want));
    emulator::SetOrder(emulator::Order::kAscending);
  }
}
#endif

std::string Names(const testing::TestParamInfo<std::tuple<DType, DType>>& info) {
  return std::string(DTypeName(std::get<0>(info.param))) + "_by_" +
         std::string(DTypeName(std::get<1>(info.param)));
}

INSTANTIATE_TEST_SUITE_P(Types, CudaMatmulTest,
                         testing::Combine(testing::ValuesIn(kActivations),
                                          testing::ValuesIn(kAllWeights)),
                         Names);

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

  // The contract's bound: of the outliers' sums and five roundings, these truncating.
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
      bounds[p.At(i)] = static_cast<double>(outliers + 8 + 5) * 0x1p-23 * size +
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

std::string TypeName(const testing::TestParamInfo<DType>& info) {
  return std::string(DTypeName(info.param));
}
INSTANTIATE_TEST_SUITE_P(Types, CudaTokensTest, testing::ValuesIn(kActivations), TypeName);

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
      EXPECT_TRUE(CompareBits(Decode(DType::kF32, y.Read()), want))
          << "lead " << lead << ", " << columns << " columns";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaEmbeddingTest, testing::ValuesIn(kAllWeights), TypeName);

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
