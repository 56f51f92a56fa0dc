// LayerNorm and HeadNorm; RmsNorm is in rowwise_test.cc.
#include <algorithm>
#include <limits>

#include "kernels/decoder_ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

class NormTest : public testing::TestWithParam<CpuTarget> {};

struct Norm {
  int64_t rows = 0, hidden = 0;
  std::vector<float> x, residual, weight, bias, y;
  LayerNormArgs Args(bool with_residual) {
    LayerNormArgs args;
    y.assign(x.size(), 0.0F);
    args.x = Tensor(x.data(), DType::kF32, {rows, hidden});
    if (with_residual) args.residual = Tensor(residual.data(), DType::kF32, {rows, hidden});
    args.weight = weight.data();
    args.bias = bias.data();
    args.epsilon = 1e-5F;
    args.y = Tensor(y.data(), DType::kF32, {rows, hidden});
    return args;
  }
};

// A mean of three deviations, as residual streams have.
Norm MakeNorm(int64_t rows, int64_t hidden) {
  Norm norm = {rows,
               hidden,
               RandomValues(rows * hidden, 1),
               RandomValues(rows * hidden, 2),
               RandomValues(hidden, 3),
               RandomValues(hidden, 4),
               {}};
  for (float& x : norm.x) x += 3;
  return norm;
}

// Where d = x - mean: the mean errs by (hidden/16 + 6) u of the mean of |x|, below 6 here, and d by
// that and u |d|. The normal value errs by d's error times the scale, by the scale's own error
// ((hidden/16 + 5) u of the sum of squares, halved by the root; 4 more operations) and by two more
// roundings; the sum with the bias by one.
double LayerNormError(int64_t hidden, double scale, double normal, double weight, double y) {
  const double sums = static_cast<double>(hidden) / 16 + 6;
  const double difference = sums * 6 * scale + std::abs(normal);
  const double scaled = (sums / 2 + 6) * std::abs(normal);
  // The mean's error also moves every square: 2 |d| of it, relative to the mean square.
  const double moved = sums * 6 * scale * std::abs(normal);
  return kUnit * (std::abs(weight) * (difference + scaled + moved) + 2 * std::abs(y));
}

TEST_P(NormTest, LayerNormAgreesWithTheReference) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  for (int64_t hidden : {2, 15, 16, 31, 576, 2048}) {
    for (int64_t rows : {0, 1, 3, 40}) {
      for (bool with_residual : {false, true}) {
        Norm got = MakeNorm(rows, hidden), want = got;
        LayerNorm(*stream, got.Args(with_residual));
        LayerNormRef(want.Args(with_residual));
        EXPECT_TRUE(CompareBits(got.x, want.x)) << "the sum with the residual";
        const auto bound = [&](size_t i) {
          const auto row = want.x.begin() + static_cast<int64_t>(i) / hidden * hidden;
          double mean = 0, square = 0;
          for (int64_t k = 0; k < hidden; ++k) mean += row[k] / static_cast<double>(hidden);
          for (int64_t k = 0; k < hidden; ++k) {
            square += (row[k] - mean) * (row[k] - mean) / static_cast<double>(hidden);
          }
          const double scale = 1 / std::sqrt(square + 1e-5);
          return LayerNormError(hidden, scale, (want.x[i] - mean) * scale, want.weight[i % hidden],
                                want.y[i]);
        };
        EXPECT_TRUE(CompareWith(got.y, want.y, bound)) << rows << " x " << hidden;
      }
    }
  }
}

TEST_P(NormTest, LayerNormMayWorkInPlace) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  Norm apart = MakeNorm(4, 100), inside = apart;
  LayerNorm(*stream, apart.Args(false));
  LayerNormArgs args = inside.Args(false);
  args.y = args.x;
  LayerNorm(*stream, args);
  EXPECT_TRUE(CompareBits(inside.x, apart.y));
}

TEST_P(NormTest, LayerNormOfEqualValuesIsTheBias) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  Norm norm = MakeNorm(2, 32);
  std::fill(norm.x.begin(), norm.x.end(), 2.5F);
  LayerNorm(*stream, norm.Args(false));
  for (int64_t i = 0; i < 64; ++i) EXPECT_EQ(norm.y[i], norm.bias[i % 32]);
}

TEST_P(NormTest, LayerNormKeepsNaNInItsRow) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  Norm norm = MakeNorm(3, 40);
  norm.x[40 + 39] = std::numeric_limits<float>::quiet_NaN();
  LayerNorm(*stream, norm.Args(false));
  for (int64_t i = 0; i < 120; ++i) EXPECT_EQ(std::isnan(norm.y[i]), i / 40 == 1);
}

struct Heads {
  int64_t rows = 0, dim = 0;
  std::vector<float> qkv, query, key;
  HeadNormArgs Args() {
    HeadNormArgs args;
    args.qkv = Tensor(qkv.data(), DType::kF32, {rows, 7 * dim});
    args.heads = 3;
    args.kv_heads = 2;
    args.head_dim = dim;
    args.query_weight = query.data();
    args.key_weight = key.data();
    args.epsilon = 1e-6F;
    return args;
  }
};

Heads MakeHeads(int64_t rows, int64_t dim) {
  return {rows, dim, RandomValues(rows * 7 * dim, 5), RandomValues(dim, 6), RandomValues(dim, 7)};
}

TEST_P(NormTest, HeadNormAgreesWithTheReferenceAndLeavesValues) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  for (int64_t dim : {2, 15, 64, 80}) {
    for (int64_t rows : {0, 1, 30}) {
      const Heads before = MakeHeads(rows, dim);
      Heads got = before, want = before;
      HeadNorm(*stream, got.Args());
      HeadNormRef(want.Args());
      // RmsNorm's error, of rows of `dim` values.
      const double error = (static_cast<double>(dim) / 32 + 9.5) * kUnit;
      EXPECT_TRUE(CompareWith(got.qkv, want.qkv, [&](size_t i) {
        return error * std::abs(static_cast<double>(want.qkv[i]));
      }));
      for (int64_t i = 0; i < rows * 7 * dim; ++i) {
        const bool value = i % (7 * dim) >= 5 * dim;
        EXPECT_TRUE(!value || got.qkv[i] == before.qkv[i]) << i;
      }
    }
  }
}

TEST_P(NormTest, HeadNormTellsQueriesFromKeys) {
  SKIP_WITHOUT(GetParam());
  const auto stream = MakeStream(GetParam());
  Heads heads = MakeHeads(1, 16);
  std::fill(heads.query.begin(), heads.query.end(), 0.0F);
  HeadNorm(*stream, heads.Args());
  for (int64_t i = 0; i < 5 * 16; ++i) EXPECT_EQ(heads.qkv[i] == 0, i < 3 * 16);
}

INSTANTIATE_TEST_SUITE_P(Targets, NormTest, testing::ValuesIn(kAllTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

class NormBitsTest : public NormTest {};

TEST_P(NormBitsTest, BitsDependNeitherOnThreadsNorOnTarget) {
  SKIP_WITHOUT(GetParam());
  const auto run = [](CpuTarget target, int threads) {
    const auto stream = MakeStream(target, threads);
    Norm norm = MakeNorm(600, 77);
    LayerNorm(*stream, norm.Args(true));
    Heads heads = MakeHeads(200, 36);
    HeadNorm(*stream, heads.Args());
    std::vector<float> all = norm.y;
    all.insert(all.end(), norm.x.begin(), norm.x.end());
    all.insert(all.end(), heads.qkv.begin(), heads.qkv.end());
    return all;
  };
  const auto want = run(CpuTarget::kPortable, 1);
  for (int threads : {1, 2, 3}) EXPECT_TRUE(CompareBits(run(GetParam(), threads), want));
}

INSTANTIATE_TEST_SUITE_P(Targets, NormBitsTest, testing::ValuesIn(kFastTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
