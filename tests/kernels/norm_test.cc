// RmsNorm, LayerNorm and HeadNorm.
#include <algorithm>
#include <limits>

#include "kernels/decoder_ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/op_device.h"

namespace pergola {
namespace {

class NormTest : public testing::TestWithParam<OpPlace> {};

// What a norm reads, on the host, and what it leaves there.
struct Norm {
  int64_t rows = 0, hidden = 0;
  std::vector<float> x, residual, weight, bias, y;
};

// A mean of three deviations, as residual streams have; x in its own type, the rest in
// activations'.
Norm MakeNorm(DType x_dtype, DType dtype, int64_t rows, int64_t hidden) {
  Norm norm = {rows,
               hidden,
               RandomValues(rows * hidden, 1),
               Rounded(dtype, RandomValues(rows * hidden, 2)),
               RandomValues(hidden, 3),
               RandomValues(hidden, 4),
               std::vector<float>(static_cast<size_t>(rows * hidden), -7.0F)};
  for (float& x : norm.x) x += 3;
  norm.x = Rounded(x_dtype, norm.x);
  return norm;
}

void SetBias(RmsNormArgs* /*args*/, const float* /*bias*/) {}
void SetBias(LayerNormArgs* args, const float* bias) {
  args->bias = bias;
}
void Run(Stream& stream, const RmsNormArgs& args) {
  RmsNorm(stream, args);
}
void Run(Stream& stream, const LayerNormArgs& args) {
  LayerNorm(stream, args);
}
void RunRef(const RmsNormArgs& args) {
  RmsNormRef(args);
}
void RunRef(const LayerNormArgs& args) {
  LayerNormRef(args);
}

template <typename Args>
Norm OnHost(Norm norm, bool with_residual) {
  Args args;
  args.x = HostTensor(&norm.x, norm.rows, norm.hidden);
  if (with_residual) args.residual = HostTensor(&norm.residual, norm.rows, norm.hidden);
  args.weight = norm.weight.data();
  SetBias(&args, norm.bias.data());
  args.epsilon = 1e-5F;
  args.y = HostTensor(&norm.y, norm.rows, norm.hidden);
  RunRef(args);
  return norm;
}

template <typename Args>
Norm There(OpDevice& device, DType x_dtype, Norm norm, bool with_residual, bool in_place = false) {
  const OpTensor x(device, x_dtype, norm.rows, norm.hidden, norm.x);
  const OpTensor residual(device, device.dtype(), norm.rows, norm.hidden, norm.residual);
  const OpTensor y(device, device.dtype(), norm.rows, norm.hidden, norm.y);
  const OnDevice<float> weight(device, norm.weight), bias(device, norm.bias);
  Args args;
  args.x = x.tensor();
  if (with_residual) args.residual = residual.tensor();
  args.weight = weight.data();
  SetBias(&args, bias.data());
  args.epsilon = 1e-5F;
  args.y = in_place ? x.tensor() : y.tensor();
  Run(device.stream(), args);
  norm.x = x.Read();
  norm.y = in_place ? norm.x : y.Read();
  return norm;
}

// The sum of squares errs by SumError u, its root by half of that; then mean, sum, root, reciprocal
// and two products, where a GPU's root has three places more.
std::vector<double> RmsNormBounds(const OpDevice& device, const Norm& want) {
  const double error = (device.SumError(want.hidden) / 2 + (device.on_cpu() ? 7 : 10)) * kUnit;
  std::vector<double> bounds;
  for (const float y : want.y) {
    bounds.push_back(error * std::abs(static_cast<double>(y)) + device.StoreError(y));
  }
  return bounds;
}

// Where d = x - mean: the mean errs by SumError + 1 u of the mean of |x|, below 6 here, and d by
// that and u |d|. The normal value errs by d's error times the scale, by the scale's own error
// (that of the sum of squares, halved by the root; 4 more operations, on a GPU 7) and by two more
// roundings; the sum with the bias by one.
std::vector<double> LayerNormBounds(const OpDevice& device, const Norm& want) {
  const double sums = device.SumError(want.hidden) + 1;
  std::vector<double> bounds;
  for (int64_t r = 0; r < want.rows; ++r) {
    const float* row = want.x.data() + r * want.hidden;
    double mean = 0, square = 0;
    for (int64_t k = 0; k < want.hidden; ++k) mean += row[k] / static_cast<double>(want.hidden);
    for (int64_t k = 0; k < want.hidden; ++k) {
      square += (row[k] - mean) * (row[k] - mean) / static_cast<double>(want.hidden);
    }
    const double scale = 1 / std::sqrt(square + 1e-5);
    for (int64_t k = 0; k < want.hidden; ++k) {
      const double normal = std::abs((row[k] - mean) * scale);
      const double y = want.y[r * want.hidden + k];
      const double difference = sums * 6 * scale + normal;
      const double scaled = (sums / 2 + (device.on_cpu() ? 6 : 9)) * normal;
      // The mean's error also moves every square: 2 |d| of it, relative to the mean square.
      const double moved = sums * 6 * scale * normal;
      const double weight = std::abs(static_cast<double>(want.weight[k]));
      bounds.push_back(kUnit * (weight * (difference + scaled + moved) + 2 * std::abs(y)) +
                       device.StoreError(y));
    }
  }
  return bounds;
}

template <typename Args>
void ExpectNorm(OpDevice& device, DType x_dtype, int64_t rows, int64_t hidden, bool residual,
                std::vector<double> (*bounds_of)(const OpDevice&, const Norm&)) {
  const Norm before = MakeNorm(x_dtype, device.dtype(), rows, hidden);
  const Norm got = There<Args>(device, x_dtype, before, residual);
  const Norm want = OnHost<Args>(before, residual);
  EXPECT_TRUE(CompareBits(got.x, want.x)) << "the sum with the residual";
  const std::vector<double> bounds = bounds_of(device, want);
  EXPECT_TRUE(CompareWith(got.y, want.y, [&](size_t i) { return bounds[i]; }))
      << rows << " x " << hidden << " residual " << residual;
}

// x is the residual stream, which is f32, or, without a residual, activations.
template <typename Args>
void ExpectNorms(const OpPlace& place,
                 std::vector<double> (*bounds_of)(const OpDevice&, const Norm&)) {
  OpDevice device(place);
  for (const int64_t hidden : {1, 15, 16, 31, 576, 2052, 4100, 8196, 16388}) {
    for (const int64_t rows : {0, 1, 3, 40}) {
      if ((rows == 40 && hidden > 31) || (rows == 3 && hidden > 2052)) continue;
      for (const bool residual : {false, true}) {
        ExpectNorm<Args>(device, DType::kF32, rows, hidden, residual, bounds_of);
      }
      if (place.dtype == DType::kF32) continue;
      ExpectNorm<Args>(device, place.dtype, rows, hidden, false, bounds_of);
    }
  }
}

TEST_P(NormTest, RmsNormAgreesWithTheReference) {
  SKIP_WITHOUT_PLACE(GetParam());
  ExpectNorms<RmsNormArgs>(GetParam(), RmsNormBounds);
}

TEST_P(NormTest, LayerNormAgreesWithTheReference) {
  SKIP_WITHOUT_PLACE(GetParam());
  ExpectNorms<LayerNormArgs>(GetParam(), LayerNormBounds);
}

template <typename Args>
void ExpectInPlace(const OpPlace& place) {
  OpDevice device(place);
  const Norm norm = MakeNorm(place.dtype, place.dtype, 4, 100);
  EXPECT_TRUE(CompareBits(There<Args>(device, place.dtype, norm, false, true).x,
                          There<Args>(device, place.dtype, norm, false).y));
}

TEST_P(NormTest, NormsMayWorkInPlace) {
  SKIP_WITHOUT_PLACE(GetParam());
  ExpectInPlace<RmsNormArgs>(GetParam());
  ExpectInPlace<LayerNormArgs>(GetParam());
}

template <typename Args>
void ExpectNaNInItsRow(const OpPlace& place) {
  OpDevice device(place);
  Norm norm = MakeNorm(DType::kF32, place.dtype, 3, 40);
  norm.x[40 + 39] = std::numeric_limits<float>::quiet_NaN();
  norm = There<Args>(device, DType::kF32, norm, false);
  for (int64_t i = 0; i < 120; ++i) EXPECT_EQ(std::isnan(norm.y[i]), i / 40 == 1);
}

TEST_P(NormTest, NormsKeepNaNInItsRow) {
  SKIP_WITHOUT_PLACE(GetParam());
  ExpectNaNInItsRow<RmsNormArgs>(GetParam());
  ExpectNaNInItsRow<LayerNormArgs>(GetParam());
}

TEST_P(NormTest, LayerNormOfEqualValuesIsTheBias) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  Norm norm = MakeNorm(DType::kF32, GetParam().dtype, 2, 32);
  std::fill(norm.x.begin(), norm.x.end(), 2.5F);
  norm = There<LayerNormArgs>(device, DType::kF32, norm, false);
  const std::vector<float> bias = Rounded(GetParam().dtype, norm.bias);
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(norm.y[i], bias[i % 32]);
}

// Three heads over two KV heads.
struct Heads {
  int64_t rows = 0, dim = 0;
  std::vector<float> qkv, query, key;
  HeadNormArgs Args(const Tensor& tensor, const float* query_weight,
                    const float* key_weight) const {
    HeadNormArgs args;
    args.qkv = tensor;
    args.heads = 3;
    args.kv_heads = 2;
    args.head_dim = dim;
    args.query_weight = query_weight;
    args.key_weight = key_weight;
    args.epsilon = 1e-6F;
    return args;
  }
  std::vector<float> There(OpDevice& device) const {
    const OpTensor tensor(device, device.dtype(), rows, 7 * dim, qkv);
    const OnDevice<float> query_there(device, query), key_there(device, key);
    HeadNorm(device.stream(), Args(tensor.tensor(), query_there.data(), key_there.data()));
    return tensor.Read();
  }
};

Heads MakeHeads(DType dtype, int64_t rows, int64_t dim) {
  return {rows, dim, Rounded(dtype, RandomValues(rows * 7 * dim, 5)), RandomValues(dim, 6),
          RandomValues(dim, 7)};
}

TEST_P(NormTest, HeadNormAgreesWithTheReferenceAndLeavesValues) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  for (const int64_t dim : {2, 15, 64, 80}) {
    for (const int64_t rows : {0, 1, 30}) {
      const Heads heads = MakeHeads(device.dtype(), rows, dim);
      const std::vector<float> got = heads.There(device);
      std::vector<float> want = heads.qkv;
      HeadNormRef(
          heads.Args(HostTensor(&want, rows, 7 * dim), heads.query.data(), heads.key.data()));
      // RmsNorm's error, of rows of `dim` values; on a GPU a warp's.
      const double error = (static_cast<double>(dim) / 32 + (device.on_cpu() ? 9.5 : 16)) * kUnit;
      EXPECT_TRUE(CompareWith(got, want,
                              [&](size_t i) {
                                return error * std::abs(static_cast<double>(want[i])) +
                                       device.StoreError(want[i]);
                              }))
          << rows << " x " << dim;
      for (int64_t i = 0; i < rows * 7 * dim; ++i) {
        const bool value = i % (7 * dim) >= 5 * dim;
        EXPECT_TRUE(!value || SameBits(got[i], heads.qkv[i])) << i;
      }
    }
  }
}

TEST_P(NormTest, HeadNormTellsQueriesFromKeys) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  Heads heads = MakeHeads(device.dtype(), 1, 16);
  std::fill(heads.query.begin(), heads.query.end(), 0.0F);
  const std::vector<float> got = heads.There(device);
  for (int64_t i = 0; i < 5 * 16; ++i) EXPECT_EQ(got[i] == 0, i < 3 * 16);
}

INSTANTIATE_TEST_SUITE_P(Places, NormTest, testing::ValuesIn(AllPlaces()),
                         [](const auto& test) { return PlaceName(test.param); });

// The reference computes in double: it has no bits to share.
class NormBitsTest : public testing::TestWithParam<CpuTarget> {};

TEST_P(NormBitsTest, BitsDependNeitherOnThreadsNorOnTarget) {
  SKIP_WITHOUT(GetParam());
  const auto run = [](CpuTarget target, int threads) {
    OpDevice device({Device::kCpu, target, DType::kF32}, threads);
    std::vector<float> all;
    const auto keep = [&](const std::vector<float>& more) {
      all.insert(all.end(), more.begin(), more.end());
    };
    const Norm norm = MakeNorm(DType::kF32, DType::kF32, 600, 77);
    for (const Norm& after : {There<LayerNormArgs>(device, DType::kF32, norm, true),
                              There<RmsNormArgs>(device, DType::kF32, norm, true)}) {
      keep(after.x);
      keep(after.y);
    }
    keep(MakeHeads(DType::kF32, 200, 36).There(device));
    return all;
  };
  const auto want = run(CpuTarget::kPortable, 1);
  for (int threads : {1, 2, 3}) EXPECT_TRUE(CompareBits(run(GetParam(), threads), want));
}

INSTANTIATE_TEST_SUITE_P(Targets, NormBitsTest, testing::ValuesIn(kFastTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
