// Weight formats (`--dtype`) on the goldens of every family: what they compute, how far from f32,
// and that layouts agree. Formats of a GPU alone (fp8) run on one, or on its emulator.
//
// Derivations. (1) bf16, f16, fp8 and int4 round weights only (fp8: up to 128 rows), so their
// logits are those of f32 weights with the same rounded values, up to two f32 computations: 2 x the
// golden's bound. The same holds between layouts, which hold the same rounded values. (2) Against
// f32 weights: tests/worker/format_noise.h. (3) int8 in two layouts differs only in the steps of
// the tokens before row-parallel matrices: two roundings, at most one step apart, so (2) bounds
// their difference too.
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
#include "tests/worker/format_noise.h"
#include "tests/worker/golden.h"
#include "tests/worker/rounded_checkpoint.h"
#include "worker/weights/convert.h"

namespace pergola {
namespace {

std::unique_ptr<Checkpoint> Open(const Golden& golden) {
  auto checkpoint = Checkpoint::Open(golden.checkpoint);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return std::move(checkpoint).value();
}

// The row as `format` holds it, in f32.
void Round(WeightFormat format, std::vector<float>* row, DType file, bool projection) {
  const DType held = HeldDType(format, file, projection);
  if (held == file) return;
  const auto columns = static_cast<int64_t>(row->size());
  const Range all{0, columns};
  std::vector<uint8_t> bytes(static_cast<size_t>(ConvertedRowBytes(held, all)));
  ASSERT_EQ(ConvertRow(row->data(), columns, all, held, bytes.data()), -1);
  if (held == DType::kFp8) {
    float scale;
    std::memcpy(&scale, bytes.data(), sizeof(scale));
    for (size_t k = 0; k < row->size(); ++k) {
      (*row)[k] = scale * E4M3ToF32(bytes[sizeof(scale) + k]);
    }
    return;
  }
  const int64_t block = BlockValues(held);
  row->resize(static_cast<size_t>((columns + block - 1) / block * block));
  DecodeToF32(held, bytes.data(), static_cast<int64_t>(row->size()), row->data());
  row->resize(static_cast<size_t>(columns));
}

constexpr LayoutOf kLayouts[] = {{2, 1}, {3, 1}, {1, 2}, {2, 2}, {3, 2}};
constexpr LayoutOf kGpuLayouts[] = {{2, 1}, {1, 2}};

absl::Span<const LayoutOf> LayoutsOf(Device device) {
  return device == Device::kCpu ? absl::Span<const LayoutOf>(kLayouts) : kGpuLayouts;
}
Device DeviceOf(WeightFormat format) {
  return format == WeightFormat::kFp8 ? Device::kCuda : Device::kCpu;
}

std::vector<std::string> AllGoldenNames() {
  std::vector<std::string> names = GoldenNames();
  names.insert(names.end(), FamilyGoldenNames().begin(), FamilyGoldenNames().end());
  return names;
}

using Case = std::tuple<std::string, WeightFormat>;

class FormatGoldenTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (DeviceOf(std::get<1>(GetParam())) == Device::kCuda && CudaDeviceCount() == 0) {
      GTEST_SKIP() << "there is no CUDA device";
    }
  }
};
class WeightsOnlyGoldenTest : public FormatGoldenTest {};  // int8 rounds tokens too

TEST_P(WeightsOnlyGoldenTest, LogitsAreThoseOfTheRoundedWeightsInEveryLayout) {
  const auto& [name, format] = GetParam();
  const Golden golden = LoadGolden(name);
  const auto checkpoint = Open(golden);
  const WeightFormat asked = format;
  const RoundedCheckpoint rounded(*checkpoint,
                                  [&](std::vector<float>* row, DType file, bool projection) {
                                    Round(asked, row, file, projection);
                                  });
  const std::vector<float> want = AllLogits(rounded, golden.prompt, WeightFormat::kF32);
  const auto logits = [&](LayoutOf layout) {
    return AllLogits(*checkpoint, golden.prompt, asked, layout, {DeviceOf(asked)});
  };
  EXPECT_LE(Worst(logits({}), want), 2 * golden.bound);
  for (const LayoutOf& layout : LayoutsOf(DeviceOf(format))) {
    EXPECT_LE(Worst(logits(layout), want), 2 * golden.bound)
        << "TP " << layout.tp << " PP " << layout.pp;
  }
}

TEST_P(FormatGoldenTest, LogitsLieWithinTheNoiseOfRoundingAndLayoutsAgree) {
  const auto& [name, format] = GetParam();
  const Golden golden = LoadGolden(name);
  const auto checkpoint = Open(golden);
  const std::vector<float> f32 = AllLogits(*checkpoint, golden.prompt, WeightFormat::kF32);
  const double bound = NoiseBound(*checkpoint, golden.prompt, format, f32) + 2 * golden.bound;
  const std::vector<float> single =
      AllLogits(*checkpoint, golden.prompt, format, {}, {DeviceOf(format)});
  EXPECT_LE(Worst(single, f32), bound);
  RecordProperty("worst_over_bound", std::to_string(Worst(single, f32) / bound));
  if (format != WeightFormat::kInt8) return;  // the others agree more closely, see above
  for (const LayoutOf& layout : kLayouts) {
    EXPECT_LE(Worst(AllLogits(*checkpoint, golden.prompt, format, layout), single), bound)
        << "TP " << layout.tp << " PP " << layout.pp;
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& test) {
  return std::get<0>(test.param) + "_" + WeightFormatName(std::get<1>(test.param));
}

INSTANTIATE_TEST_SUITE_P(Goldens, WeightsOnlyGoldenTest,
                         testing::Combine(testing::ValuesIn(AllGoldenNames()),
                                          testing::Values(WeightFormat::kBF16, WeightFormat::kF16,
                                                          WeightFormat::kFp8, WeightFormat::kInt4)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Goldens, FormatGoldenTest,
                         testing::Combine(testing::ValuesIn(AllGoldenNames()),
                                          testing::Values(WeightFormat::kBF16, WeightFormat::kF16,
                                                          WeightFormat::kInt8, WeightFormat::kFp8,
                                                          WeightFormat::kInt4)),
                         CaseName);

}  // namespace
}  // namespace pergola
