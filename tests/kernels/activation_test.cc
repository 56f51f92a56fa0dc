// Activate and SoftCap.
#include <limits>
#include <tuple>

#include "kernels/decoder_ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/op_device.h"

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
  std::vector<float> x;

  int64_t wide() const { return (gated ? 2 : 1) * width; }
  std::vector<float> Reference() const {
    std::vector<float> from = x, y(static_cast<size_t>(rows * width));
    ActivateRef({activation, gated, HostTensor(&from, rows, wide()), HostTensor(&y, rows, width)});
    return y;
  }
  std::vector<float> There(OpDevice& device) const {
    const OpTensor from(device, device.dtype(), rows, wide(), x);
    const OpTensor to(device, device.dtype(), rows, width,
                      std::vector<float>(static_cast<size_t>(rows * width), -3.0F));
    Activate(device.stream(), {activation, gated, from.tensor(), to.tensor()});
    return to.Read();
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

// By place and activation.
using ActivationCase = std::tuple<OpPlace, Activation>;

class ActivationTest : public testing::TestWithParam<ActivationCase> {
 protected:
  static OpPlace place() { return std::get<0>(GetParam()); }
  static Mlp Make(bool gated, int64_t rows, int64_t width, float deviation) {
    const int64_t count = rows * width * (gated ? 2 : 1);
    return {rows, width, std::get<1>(GetParam()), gated,
            Rounded(place().dtype, RandomValues(count, 5, deviation))};
  }
  static void Expect(OpDevice& device, const Mlp& mlp) {
    const std::vector<float> want = mlp.Reference();
    EXPECT_TRUE(CompareWith(
        mlp.There(device), want,
        [&](size_t i) {
          const int64_t row = static_cast<int64_t>(i) / mlp.width;
          const int64_t at = row * mlp.wide() + static_cast<int64_t>(i) % mlp.width;
          const double gate = mlp.gated ? mlp.x[at + mlp.width] : 1.0;
          return ErrorBound(mlp.activation, mlp.x[at], gate, want[i]) + device.StoreError(want[i]);
        }))
        << mlp.rows << " x " << mlp.width << " gated " << mlp.gated;
  }
};

TEST_P(ActivationTest, AgreesWithTheReference) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  for (const bool gated : {false, true}) {
    for (const int64_t width : {1, 15, 33, 1028}) {
      for (const int64_t rows : {0, 1, 9}) {
        if (!device.on_cpu() && rows > 1 && width > 33) continue;  // the emulator's time
        for (const float deviation : {0.01F, 1.0F, 20.0F}) {       // the last lets exp overflow
          Expect(device, Make(gated, rows, width, deviation));
        }
      }
    }
  }
}

// Every binade and both signs, densely: no piece of an approximation is missed.
TEST_P(ActivationTest, AgreesEverywhere) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  Mlp mlp = Make(false, 1, 1, 1.0F);
  mlp.x.clear();
  const float most = place().dtype == DType::kF16 ? 6e4F : 1e6F;
  for (float x = 1e-30F; x < most; x *= 1.003F) {
    mlp.x.push_back(x);
    mlp.x.push_back(-x);
  }
  mlp.x = Rounded(place().dtype, mlp.x);
  mlp.width = static_cast<int64_t>(mlp.x.size());
  Expect(device, mlp);
}

TEST_P(ActivationTest, PassesNaNOn) {
  SKIP_WITHOUT_PLACE(place());
  OpDevice device(place());
  Mlp mlp = Make(true, 1, 3, 1.0F);
  mlp.x = {1, kNaN, 2, 1, 1, kNaN};
  const std::vector<float> y = mlp.There(device);
  EXPECT_FALSE(std::isnan(y[0]));
  EXPECT_TRUE(std::isnan(y[1]));
  EXPECT_TRUE(std::isnan(y[2]));
}

INSTANTIATE_TEST_SUITE_P(Places, ActivationTest,
                         testing::Combine(testing::ValuesIn(AllPlaces()),
                                          testing::ValuesIn(kActivations)),
                         [](const testing::TestParamInfo<ActivationCase>& test) {
                           return PlaceName(std::get<0>(test.param)) + "_" +
                                  NameOf(std::get<1>(test.param));
                         });

class ActivationBitsTest : public testing::TestWithParam<std::tuple<CpuTarget, Activation>> {};

TEST_P(ActivationBitsTest, BitsDependNeitherOnThreadsNorOnTarget) {
  const auto& [target, activation] = GetParam();
  SKIP_WITHOUT(target);
  const Mlp mlp = {600, 33, activation, true, RandomValues(600 * 66, 5, 10.0F)};
  const auto run = [&](CpuTarget on, int threads) {
    OpDevice device({Device::kCpu, on, DType::kF32}, threads);
    return mlp.There(device);
  };
  const std::vector<float> want = run(CpuTarget::kPortable, 1);
  for (int threads : {1, 2, 3}) EXPECT_TRUE(CompareBits(run(target, threads), want));
}

INSTANTIATE_TEST_SUITE_P(Targets, ActivationBitsTest,
                         testing::Combine(testing::ValuesIn(kFastTargets),
                                          testing::ValuesIn(kActivations)),
                         [](const testing::TestParamInfo<std::tuple<CpuTarget, Activation>>& test) {
                           return std::string(CpuTargetName(std::get<0>(test.param))) + "_" +
                                  NameOf(std::get<1>(test.param));
                         });

// Of logits, which are f32.
std::vector<float> Capped(OpDevice& device, const std::vector<float>& x, int64_t rows) {
  const OpTensor there(device, DType::kF32, rows, static_cast<int64_t>(x.size()) / rows, x);
  SoftCap(device.stream(), SoftCapArgs{there.tensor(), 30.0F});
  return there.Read();
}

class SoftCapTest : public testing::TestWithParam<OpPlace> {};

TEST_P(SoftCapTest, AgreesWithTheReferenceEverywhere) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  std::vector<float> x = {0.0F, -0.0F, 15.0F, -15.0F, 14.999F, 15.001F};
  for (float value = 1e-30F; value < 1e6F; value *= 1.003F) {
    x.push_back(value);
    x.push_back(-value);
  }
  std::vector<float> want = x;
  SoftCapRef(SoftCapArgs{HostTensor(&want, 1, static_cast<int64_t>(x.size())), 30.0F});
  EXPECT_TRUE(CompareWith(Capped(device, x, 1), want, [&](size_t i) {
    return 10 * kUnit * std::abs(static_cast<double>(want[i]));
  }));
}

TEST_P(SoftCapTest, NeverExceedsTheCapAndKeepsNaN) {
  SKIP_WITHOUT_PLACE(GetParam());
  OpDevice device(GetParam());
  const float infinity = std::numeric_limits<float>::infinity();
  const auto got = Capped(device, {infinity, -infinity, 1e30F, kNaN}, 2);
  EXPECT_EQ(got[0], 30.0F);
  EXPECT_EQ(got[1], -30.0F);
  EXPECT_EQ(got[2], 30.0F);
  EXPECT_TRUE(std::isnan(got[3]));
}

INSTANTIATE_TEST_SUITE_P(Places, SoftCapTest, testing::ValuesIn(F32Places()),
                         [](const auto& test) { return PlaceName(test.param); });

class SoftCapBitsTest : public testing::TestWithParam<CpuTarget> {};

TEST_P(SoftCapBitsTest, BitsDependNeitherOnThreadsNorOnTarget) {
  SKIP_WITHOUT(GetParam());
  const auto x = RandomValues(600 * 31, 8, 40.0F);
  const auto run = [&](CpuTarget target, int threads) {
    OpDevice device({Device::kCpu, target, DType::kF32}, threads);
    return Capped(device, x, 600);
  };
  const auto want = run(CpuTarget::kPortable, 1);
  for (int threads : {1, 3}) EXPECT_TRUE(CompareBits(run(GetParam(), threads), want));
}

INSTANTIATE_TEST_SUITE_P(Targets, SoftCapBitsTest, testing::ValuesIn(kFastTargets),
                         [](const auto& test) { return CpuTargetName(test.param); });

}  // namespace
}  // namespace pergola
