// The CUDA versions of the small ops against the references, for every type of activation, on the
// emulator or on a GPU.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/kv_layout.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/activations.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/norm_bound.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class CudaRowOpsTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
  }
  DType dtype() const { return GetParam(); }
};

Tensor Host(std::vector<float>* values, int64_t rows, int64_t columns) {
  return Tensor(values->data(), DType::kF32, {rows, columns});
}

// Runs a norm on the device and in the reference: x in `x_dtype`, the rest in `dtype`.
template <typename Args>
void ExpectNorm(DType x_dtype, DType dtype, int64_t rows, int64_t hidden, bool with_residual,
                void (*cuda)(const CudaContext&, const Args&), void (*reference)(const Args&)) {
  const TestCudaContext context;
  std::vector<float> x = Rounded(x_dtype, RandomValues(rows * hidden, 1));
  for (float& value : x) value += 3;
  x = Rounded(x_dtype, x);
  std::vector<float> residual = Rounded(dtype, RandomValues(rows * hidden, 2));
  const std::vector<float> weight = RandomValues(hidden, 3), bias = RandomValues(hidden, 4);
  const DeviceActivations device_x(x_dtype, rows, hidden, x), device_y(dtype, rows, hidden, x);
  const DeviceActivations device_residual(dtype, rows, hidden, residual);
  const DeviceArray<float> device_weight(weight), device_bias(bias);
  Args args;
  args.x = device_x.tensor();
  if (with_residual) args.residual = device_residual.tensor();
  args.weight = device_weight.data();
  args.epsilon = 1e-5F;
  args.y = device_y.tensor();
  constexpr bool kLayer = std::is_same_v<Args, LayerNormArgs>;
  if constexpr (kLayer) args.bias = device_bias.data();
  cuda(context, args);

  std::vector<float> want(x.size());
  args.x = Host(&x, rows, hidden);
  if (with_residual) args.residual = Host(&residual, rows, hidden);
  args.weight = weight.data();
  if constexpr (kLayer) args.bias = bias.data();
  args.y = Host(&want, rows, hidden);
  reference(args);
  EXPECT_TRUE(CompareBits(device_x.Read(), x)) << "the sum with the residual";
  EXPECT_TRUE(CompareWith(device_y.Read(), want, NormBound(want, weight, bias, kLayer, dtype)))
      << rows << " x " << hidden << " residual " << with_residual;
}

TEST_P(CudaRowOpsTest, RmsNormAgreesWithTheReference) {
  for (int64_t hidden : {1, 31, 64, 576, 2052}) {
    for (int64_t rows : {0, 1, 3}) {
      for (bool with_residual : {false, true}) {
        ExpectNorm<RmsNormArgs>(DType::kF32, dtype(), rows, hidden, with_residual, RmsNormCuda,
                                RmsNormRef);
      }
      ExpectNorm<RmsNormArgs>(dtype(), dtype(), rows, hidden, false, RmsNormCuda, RmsNormRef);
    }
  }
}

TEST_P(CudaRowOpsTest, LayerNormAgreesWithTheReference) {
  for (int64_t hidden : {31, 64, 576, 2052}) {
    for (bool with_residual : {false, true}) {
      ExpectNorm<LayerNormArgs>(DType::kF32, dtype(), 3, hidden, with_residual, LayerNormCuda,
                                LayerNormRef);
    }
    ExpectNorm<LayerNormArgs>(dtype(), dtype(), 2, hidden, false, LayerNormCuda, LayerNormRef);
  }
}

TEST_P(CudaRowOpsTest, NormsMayWorkInPlaceAndKeepNaNInItsRow) {
  const TestCudaContext context;
  std::vector<float> x = Rounded(dtype(), RandomValues(3 * 40, 9));
  x[40 + 39] = kNaN;
  const std::vector<float> ones(40, 1.0F);
  const DeviceActivations in_place(dtype(), 3, 40, x), from(dtype(), 3, 40, x),
      to(dtype(), 3, 40, x);
  const DeviceArray<float> weight(ones);
  RmsNormArgs args;
  args.weight = weight.data();
  args.epsilon = 1e-5F;
  args.x = from.tensor();
  args.y = to.tensor();
  RmsNormCuda(context, args);
  args.x = args.y = in_place.tensor();
  RmsNormCuda(context, args);
  const std::vector<float> got = in_place.Read();
  EXPECT_TRUE(CompareBits(got, to.Read()));
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(std::isnan(got[i]), i / 40 == 1);
}

TEST_P(CudaRowOpsTest, HeadNormAgreesWithTheReferenceAndLeavesValues) {
  const TestCudaContext context;
  for (int64_t dim : {2, 15, 64, 80}) {
    const int64_t rows = 5;
    std::vector<float> qkv = Rounded(dtype(), RandomValues(rows * 7 * dim, 5));
    const std::vector<float> query = RandomValues(dim, 6), key = RandomValues(dim, 7);
    const std::vector<float> before = qkv;
    const DeviceActivations device(dtype(), rows, 7 * dim, qkv);
    const DeviceArray<float> device_query(query), device_key(key);
    HeadNormArgs args;
    args.heads = 3;
    args.kv_heads = 2;
    args.head_dim = dim;
    args.epsilon = 1e-6F;
    args.qkv = device.tensor();
    args.query_weight = device_query.data();
    args.key_weight = device_key.data();
    HeadNormCuda(context, args);
    args.qkv = Host(&qkv, rows, 7 * dim);
    args.query_weight = query.data();
    args.key_weight = key.data();
    HeadNormRef(args);
    const std::vector<float> got = device.Read();
    EXPECT_TRUE(CompareWith(got, qkv, [&](size_t i) {
      const double error = (static_cast<double>(dim) / 64 + 16) * kUnit;
      return error * std::abs(static_cast<double>(qkv[i])) + RoundingError(dtype(), qkv[i]);
    })) << dim;
    for (size_t i = 0; i < got.size(); ++i) {
      const bool value = static_cast<int64_t>(i) % (7 * dim) >= 5 * dim;
      EXPECT_TRUE(!value || SameBits(got[i], before[i])) << i;
    }
  }
}

// Three heads over two KV heads; the third row is padding.
struct RopeScene {
  int64_t dim, dims;
  std::vector<float> qkv, cosine, sine;
  std::vector<int32_t> positions = {5, 18, -1};
  std::vector<int64_t> slots = {2 * 16 + 5, 0 * 16 + 2, 0};
};

RopeScene MakeRope(DType dtype, int64_t dim, int64_t dims) {
  return {dim, dims, Rounded(dtype, RandomValues(3 * 7 * dim, 11)), RandomValues(20 * dims / 2, 12),
          RandomValues(20 * dims / 2, 13)};
}

TEST_P(CudaRowOpsTest, RopeAndStoreAgreesWithTheReferenceAndSkipsPadding) {
  const TestCudaContext context;
  for (const auto& [dim, dims] : std::vector<std::pair<int64_t, int64_t>>{
           {2, 2}, {15, 8}, {64, 64}, {80, 80}, {80, 32}, {16, 0}}) {
    for (const DType kv : {DType::kF32, DType::kF16, DType::kBF16}) {
      RopeScene scene = MakeRope(dtype(), dim, dims);
      const int64_t cache_values = 3 * 2 * 16 * dim;
      std::vector<uint8_t> k(static_cast<size_t>(DTypeBytes(kv, cache_values))), v = k;
      const DeviceActivations qkv(dtype(), 3, 7 * dim, scene.qkv);
      const DeviceArray<float> cosine(scene.cosine), sine(scene.sine);
      const DeviceArray<int32_t> positions(scene.positions);
      const DeviceArray<int64_t> slots(scene.slots);
      const DeviceArray<uint8_t> k_cache(k), v_cache(v);
      RopeAndStoreArgs args;
      args.heads = 3;
      args.kv_heads = 2;
      args.head_dim = dim;
      args.block_tokens = 16;
      args.kv_dtype = kv;
      args.rope.dims = dims;
      args.rope.positions = 20;
      args.qkv = qkv.tensor();
      args.rope.cosine = cosine.data();
      args.rope.sine = sine.data();
      args.positions = positions.data();
      args.slot_of_row = slots.data();
      args.k_cache = k_cache.data();
      args.v_cache = v_cache.data();
      RopeAndStoreCuda(context, args);
      const std::vector<float> before = scene.qkv;
      args.qkv = Host(&scene.qkv, 2, 7 * dim);  // without the padding
      args.rope.cosine = scene.cosine.data();
      args.rope.sine = scene.sine.data();
      args.positions = scene.positions.data();
      args.slot_of_row = scene.slots.data();
      args.k_cache = k.data();
      args.v_cache = v.data();
      RopeAndStoreRef(args);
      // Each rotated value is two products and a sum of values below 8.
      const double rotated = 3 * 2 * 64 * kUnit;
      EXPECT_TRUE(
          CompareWith(qkv.Read(), scene.qkv,
                      [&](size_t i) { return rotated + RoundingError(dtype(), scene.qkv[i]); }))
          << dim << " of " << dims;
      for (const auto& [device, host] : {std::pair(&k_cache, &k), std::pair(&v_cache, &v)}) {
        const std::vector<float> want = ToFloats(kv, *host);
        EXPECT_TRUE(CompareWith(ToFloats(kv, device->Read()), want,
                                [&](size_t i) { return rotated + 2 * RoundingError(kv, want[i]); }))
            << dim << " of " << dims;
      }
    }
  }
}

TEST_P(CudaRowOpsTest, ActivateAgreesWithTheReference) {
  const TestCudaContext context;
  for (const Activation activation :
       {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf}) {
    for (const bool gated : {false, true}) {
      for (const int64_t width : {1, 15, 64, 1028}) {
        const int64_t rows = 3, wide = gated ? 2 * width : width;
        std::vector<float> x = Rounded(dtype(), RandomValues(rows * wide, 5, 4.0F));
        std::vector<float> want(static_cast<size_t>(rows * width));
        const DeviceActivations from(dtype(), rows, wide, x), to(dtype(), rows, width, want);
        ActivateArgs args{activation, gated, from.tensor(), to.tensor()};
        ActivateCuda(context, args);
        args.x = Host(&x, rows, wide);
        args.y = Host(&want, rows, width);
        ActivateRef(args);
        EXPECT_TRUE(CompareWith(
            to.Read(), want,
            [&](size_t i) {
              const auto at = static_cast<int64_t>(i);
              const double in = x[static_cast<size_t>(at / width * wide + at % width)];
              const double gate =
                  gated ? x[static_cast<size_t>(at / width * wide + at % width + width)] : 1;
              const double t = std::min(90.0, 1.6 * std::abs(in + 0.044715 * in * in * in));
              // decoder_ops.h's bounds, with the constants' roundings and the product.
              return kUnit * (12 * std::abs(in * gate) + (4 * t + 4) * std::abs(want[i])) + 1e-30 +
                     RoundingError(dtype(), want[i]);
            }))
            << width << " gated " << gated << " activation " << static_cast<int>(activation);
      }
    }
  }
}

TEST_P(CudaRowOpsTest, AddConvertsAndCopiesMoveWhatTheySay) {
  const TestCudaContext context;
  const int64_t rows = 4, columns = 37;
  const std::vector<float> x = RandomValues(rows * columns, 1);
  const std::vector<float> y = Rounded(dtype(), RandomValues(rows * columns, 2));
  const DeviceActivations stream(DType::kF32, rows, columns, x), branch(dtype(), rows, columns, y);
  AddCuda(context, AddArgs{stream.tensor(), branch.tensor()});
  std::vector<float> sum = x;
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += y[i];
  EXPECT_TRUE(CompareBits(stream.Read(), sum));

  const std::vector<int32_t> picks = {3, 0, -1};
  const DeviceArray<int32_t> rows_picked(picks);
  const DeviceActivations picked(dtype(), 3, columns, std::vector<float>(3 * columns, 7.0F));
  CopyRowsCuda(context, CopyRowsArgs{stream.tensor(), rows_picked.data(), picked.tensor()});
  std::vector<float> want;
  for (const int32_t row : picks) {
    for (int64_t i = 0; i < columns; ++i) want.push_back(row < 0 ? 7.0F : sum[row * columns + i]);
  }
  EXPECT_TRUE(CompareBits(picked.Read(), Rounded(dtype(), want)));

  const DeviceActivations wide(dtype(), rows, 50, std::vector<float>(rows * 50, -1.0F));
  CopyColumnsCuda(context, CopyColumnsArgs{branch.tensor(), 9, wide.tensor()});
  const std::vector<float> got = wide.Read();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < 50; ++c) {
      const bool inside = c >= 9 && c < 9 + columns;
      EXPECT_EQ(got[r * 50 + c], inside ? y[r * columns + c - 9] : -1.0F);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Activations, CudaRowOpsTest,
                         testing::Values(DType::kF32, DType::kF16, DType::kBF16),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

class CudaCopyTest : public CudaRowOpsTest {};

TEST_P(CudaCopyTest, SoftCapStaysBelowTheCapAndKeepsNaN) {
  const TestCudaContext context;
  std::vector<float> x = RandomValues(3 * 21, 1, 40.0F);
  x[7] = kNaN;
  const DeviceActivations device(DType::kF32, 3, 21, x);
  SoftCapCuda(context, SoftCapArgs{device.tensor(), 30});
  std::vector<float> want = x;
  SoftCapRef(SoftCapArgs{Host(&want, 3, 21), 30});
  EXPECT_TRUE(CompareWith(device.Read(), want,
                          [&](size_t i) { return 10 * kUnit * std::abs(double{x[i]}); }));
}

TEST_P(CudaCopyTest, ScatterAndCopyBlockReachTheirPlacesAlone) {
  const TestCudaContext context;
  const DeviceArray<int32_t> to(std::vector<int32_t>(10, -1)), at(std::vector<int32_t>{9, 0, 4}),
      values(std::vector<int32_t>{90, 1, 40});
  ScatterCuda(context, ScatterArgs{at.data(), values.data(), 3, to.data()});
  EXPECT_EQ(to.Read(), (std::vector<int32_t>{1, -1, -1, -1, 40, -1, -1, -1, -1, 90}));

  const DeviceArray<uint8_t> k(std::vector<uint8_t>{1, 2, 3, 4, 5, 6}),
      v(std::vector<uint8_t>{7, 8, 9, 10, 11, 12});
  CopyBlockCuda(context, CopyBlockArgs{0, 2, 2, k.data(), v.data()});
  EXPECT_EQ(k.Read(), (std::vector<uint8_t>{1, 2, 3, 4, 1, 2}));
  EXPECT_EQ(v.Read(), (std::vector<uint8_t>{7, 8, 9, 10, 7, 8}));
}

INSTANTIATE_TEST_SUITE_P(F32, CudaCopyTest, testing::Values(DType::kF32),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

}  // namespace
}  // namespace pergola
