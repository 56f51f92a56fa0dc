// Activate and SoftCap.
#include <limits>
#include <tuple>

#include "kernels/decoder_ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGeluTanh,
                                       Activation::kGeluErf};

const char* NameOf(Activation activation) {
  static constexpr const char* kNames[] = {"silu", "gelu_tanh", "gelu_erf"};
  return kNames[static_cast<int>(activation)];
}

struct Mlp {
  int64_t rows = 0, width = 0;
  Activation activation = Activation::kSilu;
  bool gated = false;
  std::vector<float> x, y;
  ActivateArgs Args() {
    y.assign(static_cast<size_t>(rows * width), -3.0F);
    ActivateArgs args;
    args.activation = activation;
    args.gated = gated;
    args.x = Tensor(x.data(), DType::kF32, {rows, (gated ? 2 : 1) * width});
    args.y = Tensor(y.data(), DType::kF32, {rows, width});
    return args;
  }
};

// The header's bound on f(x), times the gate's factor and one rounding more. Where e^-x overflows
// the true value is below 100 e^-87.
double ErrorBound(Activation activation, double x, double factor, double want) {
  const double size = std::abs(want);
  const double t = 1.6 * std::abs(x + 0.044715 * x * x * x);
  double error = 8 * size;
  if (activation == Activation::kGeluTanh) error = (9 + 4 * std::min(t, 90.0)) * size;
  if (activation == Activation::kGeluErf) error = 8 * std::abs(x * factor) + size;
  return kUnit * error + 1e-33 * (1 + std::abs(factor));
}

class ActivationTest : public testing::TestWithParam<std::tuple<CpuTarget, Activation>> {
 protected:
  CpuTarget target() const { return std::get<0>(GetParam()); }
  Mlp Make(bool gated, int64_t rows, int64_t width, float deviation) const {
    return {rows,
            width,
            std::get<1>(GetParam()),
            gated,
            RandomValues(rows * width * (gated ? 2 : 1), 5, deviation),
            {}};
  }
};

TEST_P(ActivationTest, AgreesWithTheReference) {
  SKIP_WITHOUT(target());
  const auto stream = MakeStream(target());
  for (const bool gated : {false, true}) {
    for (int64_t width : {1, 15, 33, 1536}) {
      for (int64_t rows : {0, 1, 9}) {
        for (float deviation : {0.01F, 1.0F, 20.0F}) {  // the last lets exp overflow
          Mlp got = Make(gated, rows, width, deviation), want = got;
          Activate(*stream, got.Args());
          ActivateRef(want.Args());
          EXPECT_TRUE(CompareWith(got.y, want.y,
                                  [&](size_t i) {
                                    const int64_t row = static_cast<int64_t>(i) / width;
                                    const int64_t at = row * width * (gated ? 2 : 1) +
                                                       static_cast<int64_t>(i) % width;
                                    return ErrorBound(got.activation, got.x[at],
                                                      gated ? got.x[at + width] : 1.0, want.y[i]);
                                  }))
              << rows << " x " << width << " gated " << gated;
        }
      }
    }
  }
}

// Every binade and both signs, densely: no piece of an approximation is missed.
TEST_P(ActivationTest, AgreesEverywhere) {
  SKIP_WITHOUT(target());
  const auto stream = MakeStream(target());
  Mlp got = Make(false, 1, 1, 1.0F);
  got.x.clear();
  for (float x = 1e-30F; x < 1e6F; x *= 1.003F) {
    got.x.push_back(x);
    got.x.push_back(-x);
  }
  got.width = static_cast<int64_t>(got.x.size());
  Mlp want = got;
  Activate(*stream, got.Args());
  ActivateRef(want.Args());
  EXPECT_TRUE(CompareWith(
      got.y, want.y, [&](size_t i) { return ErrorBound(got.activation, got.x[i], 1, want.y[i]); }));
}

TEST_P(ActivationTest, PassesNaNOn) {
  SKIP_WITHOUT(target());
  const auto stream = MakeStream(target());
  Mlp mlp = Make(true, 1, 3, 1.0F);
  mlp.x = {1, kNaN, 2, 1, 1, kNaN};
  Activate(*stream, mlp.Args());
  EXPECT_FALSE(std::isnan(mlp.y[0]));
  EXPECT_TRUE(std::isnan(mlp.y[1]));
  EXPECT_TRUE(std::isnan(mlp.y[2]));
}

std::string TestName(const testing::TestParamInfo<std::tuple<CpuTarget, Activation>>& test) {
  return std::string(CpuTargetName(std::get<0>(test.param))) + "_" +
         NameOf(std::get<1>(test.param));
}

INSTANTIATE_TEST_SUITE_P(Targets, ActivationTest,
                         testing::Combine(testing::ValuesIn(kAllTargets),
                                          testing::ValuesIn(kActivations)),
                         TestName);

class ActivationBitsTest : public ActivationTest {};

TEST_P(ActivationBitsTest, BitsDependNeitherOnThreadsNorOnTarget) {
  SKIP_WITHOUT(target());
  Mlp want = Make(true, 600, 33, 10.0F);
  Activate(*MakeStream(CpuTarget::kPortable, 1), want.Args());
  for (int threads : {1, 2, 3}) {
    Mlp got = Make(true, 600, 33, 10.0F);
    Activate(*MakeStream(target(), threads), got.Args());
    EXPECT_TRUE(CompareBits(got.y, want.y));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, ActivationBitsTest,
                         testing::Combine(testing::ValuesIn(kFastTargets),
                                          testing::ValuesIn(kActivations)),
                         TestName);

class SoftCapTest : public testing::TestWithParam<CpuTarget> {
 protected:
  static std::vector<float> Capped(CpuTarget target, std::vector<float> x, int64_t rows,
                                   int threads = 2) {
    const auto stream = MakeStream(target, threads);
    const int64_t columns = static_cast<int64_t>(x.size()) / rows;
    SoftCap(*stream, SoftCapArgs{Tensor(x.data(), DType::kF32, {rows, columns}), 30.0F});
    return x;
  }
};

TEST_P(SoftCapTest, AgreesWithTheReferenceEverywhere) {
  SKIP_WITHOUT(GetParam());
  std::vector<float> x = {0.0F, -0.0F, 15.0F, -15.0F, 14.999F, 15.001F};
  for (float value = 1e-30F; value < 1e6F; value *= 1.003F) {
    x.push_back(value);
    x.push_back(-value);
  }
  const auto want = Capped(CpuTarget::kReference, x, 1);
  EXPECT_TRUE(CompareWith(Capped(GetParam(), x, 1), want, [&](size_t i) {
    return 10 * kUnit * std::abs(static_cast<double>(want[i]));
  }));
}

TEST_P(SoftCapTest, NeverExceedsTheCapAndKeepsNaN) {
  SKIP_WITHOUT(GetParam());
  const float infinity = std::numeric_limits<float>::infinity();
  const auto got = Capped(GetParam(), {infinity, -infinity, 1e30F, kNaN}, 2);
  EXPECT_EQ(got[0], 30.0F);
  EXPECT_EQ(got[1], -30.0F);
  EXPECT_EQ(got[2], 30.0F);
  EXPECT_TRUE(std::isnan(got[3]));
}

INSTANTIATE_TEST_SUITE_P(Targets, SoftCapTest, testing::ValuesIn(kAllTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

class SoftCapBitsTest : public SoftCapTest {};

TEST_P(SoftCapBitsTest, BitsDependNeitherOnThreadsNorOnTarget) {
  SKIP_WITHOUT(GetParam());
  const auto x = RandomValues(600 * 31, 8, 40.0F);
  const auto want = Capped(CpuTarget::kPortable, x, 600, 1);
  for (int threads : {1, 3}) {
    EXPECT_TRUE(CompareBits(Capped(GetParam(), x, 600, threads), want));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, SoftCapBitsTest, testing::ValuesIn(kFastTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
