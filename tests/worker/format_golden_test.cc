// Weight formats (`--dtype`) on the goldens of every family: what they compute, how far from f32,
// and that layouts agree.
//
// Derivations. (1) bf16, f16 and int4 round weights only, so their logits are those of f32 weights
// with the same rounded values, up to two f32 computations: 2 x the golden's bound. The same holds
// between layouts, which hold the same rounded values. (2) Against f32 weights, rounding acts as
// noise: an error of at most half a step per weight, and of int8 as much again per token. The test
// disturbs the f32 weights by uniform noise of +-1 step (four times the variance of rounding) in
// three draws and takes twice the worst logit error of them as the bound. (3) int8 in two layouts
// differs only in the steps of the tokens before row-parallel matrices: two roundings, at most one
// step apart, so (2) bounds their difference too.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/all_logits.h"
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

double Worst(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = std::abs(static_cast<double>(a[i]) - b[i]);
    if (!(off <= worst)) worst = off;  // a NaN stays
  }
  return worst;
}

// The row as `format` holds it, in f32.
void Round(WeightFormat format, std::vector<float>* row, DType file, bool projection) {
  const DType held = HeldDType(format, file, projection);
  if (held == file) return;
  const auto columns = static_cast<int64_t>(row->size());
  const Range all{0, columns};
  std::vector<uint8_t> bytes(static_cast<size_t>(ConvertedRowBytes(held, all)));
  ASSERT_EQ(ConvertRow(row->data(), columns, all, held, bytes.data()), -1);
  const int64_t block = BlockValues(held);
  row->resize(static_cast<size_t>((columns + block - 1) / block * block));
  DecodeToF32(held, bytes.data(), static_cast<int64_t>(row->size()), row->data());
  row->resize(static_cast<size_t>(columns));
}

// The distance of neighbouring numbers of a format at each value of a row.
std::vector<float> Steps(DType held, const std::vector<float>& row) {
  std::vector<float> steps(row.size());
  const auto size = [](float a, float b) { return std::abs(a) < std::abs(b); };
  const float most = std::abs(*std::max_element(row.begin(), row.end(), size));
  for (size_t k = 0; k < row.size(); ++k) {
    const auto group = row.begin() + static_cast<int64_t>(k / 32 * 32);
    const auto group_end = std::min(group + 32, row.end());
    const auto [low, high] = std::minmax_element(group, group_end);
    int exponent = 0;
    std::frexp(row[k], &exponent);
    steps[k] = held == DType::kBF16   ? std::ldexp(1.0F, exponent - 8)
               : held == DType::kF16  ? std::ldexp(1.0F, std::max(exponent - 11, -24))
               : held == DType::kInt8 ? most / 127
                                      : (*high - *low) / 15;
  }
  return steps;
}

double NoiseBound(const Checkpoint& checkpoint, const Golden& golden, WeightFormat format,
                  const std::vector<float>& f32) {
  double worst = 0;
  for (uint32_t draw = 0; draw < 3; ++draw) {
    std::mt19937 random(draw);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const RoundedCheckpoint noisy(checkpoint,
                                  [&](std::vector<float>* row, DType file, bool projection) {
                                    const DType held = HeldDType(format, file, projection);
                                    if (held == file || held == DType::kF32) return;
                                    const std::vector<float> steps = Steps(held, *row);
                                    for (size_t k = 0; k < row->size(); ++k)
                                      (*row)[k] += steps[k] * uniform(random);
                                  });
    worst = std::max(worst, Worst(AllLogits(noisy, golden.prompt, WeightFormat::kF32), f32));
  }
  return 2 * worst;
}

constexpr LayoutOf kLayouts[] = {{2, 1}, {3, 1}, {1, 2}, {2, 2}, {3, 2}};

std::vector<std::string> AllGoldenNames() {
  std::vector<std::string> names = GoldenNames();
  names.insert(names.end(), FamilyGoldenNames().begin(), FamilyGoldenNames().end());
  return names;
}

using Case = std::tuple<std::string, WeightFormat>;

class FormatGoldenTest : public testing::TestWithParam<Case> {};
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
  EXPECT_LE(Worst(AllLogits(*checkpoint, golden.prompt, format), want), 2 * golden.bound);
  for (const LayoutOf& layout : kLayouts) {
    EXPECT_LE(Worst(AllLogits(*checkpoint, golden.prompt, format, layout), want), 2 * golden.bound)
        << "TP " << layout.tp << " PP " << layout.pp;
  }
}

TEST_P(FormatGoldenTest, LogitsLieWithinTheNoiseOfRoundingAndLayoutsAgree) {
  const auto& [name, format] = GetParam();
  const Golden golden = LoadGolden(name);
  const auto checkpoint = Open(golden);
  const std::vector<float> f32 = AllLogits(*checkpoint, golden.prompt, WeightFormat::kF32);
  const double bound = NoiseBound(*checkpoint, golden, format, f32) + 2 * golden.bound;
  const std::vector<float> single = AllLogits(*checkpoint, golden.prompt, format);
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
                                                          WeightFormat::kInt4)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Goldens, FormatGoldenTest,
                         testing::Combine(testing::ValuesIn(AllGoldenNames()),
                                          testing::Values(WeightFormat::kBF16, WeightFormat::kF16,
                                                          WeightFormat::kInt8,
                                                          WeightFormat::kInt4)),
                         CaseName);

}  // namespace
}  // namespace pergola
