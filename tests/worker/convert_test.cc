#include "worker/weights/convert.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/int8.h"
#include "model/weight_format.h"

namespace pergola {
namespace {

std::vector<float> Normal(int64_t count, uint32_t seed, float deviation = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

std::vector<float> Decoded(DType dtype, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(bytes.size() / BlockBytes(dtype) * BlockValues(dtype));
  DecodeToF32(dtype, bytes.data(), static_cast<int64_t>(values.size()), values.data());
  return values;
}

double SquaredError(const std::vector<float>& x, DType to) {
  double sum = 0;
  std::vector<uint8_t> block(static_cast<size_t>(BlockBytes(to)));
  for (size_t at = 0; at < x.size(); at += 32) {
    const auto count = std::min<size_t>(32, x.size() - at);
    EXPECT_TRUE(QuantizeGroup(x.data() + at, static_cast<int64_t>(count), to, block.data()));
    const std::vector<float> back = Decoded(to, block);
    for (size_t i = 0; i < count; ++i) sum += std::pow(x[at + i] - back[i], 2);
  }
  return sum;
}

// The plain ways: the largest value takes -8; the range in 15 steps.
double PlainSquaredError(const std::vector<float>& x, DType to) {
  double sum = 0;
  for (size_t at = 0; at < x.size(); at += 32) {
    float low = x[at], high = x[at], peak = 0;
    for (size_t i = at; i < at + 32; ++i) {
      low = std::min(low, x[i]);
      high = std::max(high, x[i]);
      if (std::abs(x[i]) > std::abs(peak)) peak = x[i];
    }
    const bool q4_0 = to == DType::kQ4_0;
    const float step = F16ToF32(F32ToF16(q4_0 ? peak / -8 : (high - low) / 15));
    const float minimum = q4_0 ? -8 * step : F16ToF32(F32ToF16(low));
    for (size_t i = at; i < at + 32; ++i) {
      const float q = std::fmin(15, std::fmax(0, std::round((x[i] - minimum) / step)));
      sum += std::pow(x[i] - (step * q + minimum), 2);
    }
  }
  return sum;
}

TEST(QuantizeGroupTest, ErrsLessThanThePlainSteps) {
  const std::vector<float> x = Normal(32 * 500, 1);
  for (DType to : {DType::kQ4_0, DType::kQ4_1}) {
    const double found = SquaredError(x, to), plain = PlainSquaredError(x, to);
    RecordProperty(std::string(DTypeName(to)) + "_rms", std::to_string(std::sqrt(found / 16000)));
    RecordProperty(std::string(DTypeName(to)) + "_plain", std::to_string(std::sqrt(plain / 16000)));
    EXPECT_LT(found, 0.95 * plain) << DTypeName(to);
  }
}

TEST(QuantizeGroupTest, TheFormatOfInt4ErrsLeast) {
  const std::vector<float> x = Normal(32 * 500, 2);
  const DType other = kInt4Groups == DType::kQ4_1 ? DType::kQ4_0 : DType::kQ4_1;
  EXPECT_LT(SquaredError(x, kInt4Groups), SquaredError(x, other));
}

TEST(QuantizeGroupTest, GroupsOfOneValueAndOfZerosAreExact) {
  for (DType to : {DType::kQ4_0, DType::kQ4_1}) {
    EXPECT_EQ(SquaredError(std::vector<float>(64, 0.0F), to), 0) << DTypeName(to);
    EXPECT_EQ(SquaredError(std::vector<float>(32, 0.5F), to), 0) << DTypeName(to);
    EXPECT_EQ(SquaredError(std::vector<float>(32, -0.5F), to), 0) << DTypeName(to);
    EXPECT_EQ(SquaredError({0.25F}, to), 0) << DTypeName(to);
  }
}

TEST(QuantizeGroupTest, StepsAndMinimaBeyondF16AreRefused) {
  std::vector<float> x(32, 0.0F);
  uint8_t block[20];
  for (DType to : {DType::kQ4_0, DType::kQ4_1}) {
    x[3] = 1e5F;
    EXPECT_TRUE(QuantizeGroup(x.data(), 32, to, block)) << DTypeName(to);
    x[3] = -2e6F;
    EXPECT_FALSE(QuantizeGroup(x.data(), 32, to, block)) << DTypeName(to);
    x[3] = std::numeric_limits<float>::max();
    EXPECT_FALSE(QuantizeGroup(x.data(), 32, to, block)) << DTypeName(to);
  }
}

TEST(ConvertRowTest, ACutHoldsTheValuesOfTheWholeRow) {
  const int64_t columns = 203;
  const std::vector<float> row = Normal(columns, 3);
  for (DType to : {DType::kF32, DType::kBF16, DType::kF16, DType::kQ4_0, DType::kQ4_1}) {
    const int64_t block = BlockValues(to);
    std::vector<uint8_t> bytes(static_cast<size_t>(ConvertedRowBytes(to, {0, columns})));
    ASSERT_EQ(ConvertRow(row.data(), columns, {0, columns}, to, bytes.data()), -1);
    const std::vector<float> whole = Decoded(to, bytes);
    for (const Range cut : {Range{0, 31}, Range{33, 64}, Range{64, 203}, Range{202, 203}}) {
      bytes.assign(static_cast<size_t>(ConvertedRowBytes(to, cut)), 0);
      ASSERT_EQ(ConvertRow(row.data(), columns, cut, to, bytes.data()), -1);
      const std::vector<float> part = Decoded(to, bytes);
      for (int64_t k = cut.begin; k < cut.end; ++k) {
        EXPECT_EQ(part[k - cut.begin / block * block], whole[k]) << DTypeName(to) << " " << k;
      }
    }
  }
}

TEST(ConvertRowTest, Int8TakesItsStepsFromTheWholeRow) {
  std::vector<float> row = Normal(100, 4);
  row[99] = 12.7F;
  std::vector<uint8_t> bytes(static_cast<size_t>(ConvertedRowBytes(DType::kInt8, {10, 20})));
  ASSERT_EQ(bytes.size(), 14U);
  ASSERT_EQ(ConvertRow(row.data(), 100, {10, 20}, DType::kInt8, bytes.data()), -1);
  float scale = 0;
  std::memcpy(&scale, bytes.data(), 4);
  EXPECT_EQ(scale, 12.7F / 127.0F);
  for (int64_t k = 10; k < 20; ++k) {
    const auto q = static_cast<int8_t>(bytes[static_cast<size_t>(4 + k - 10)]);
    EXPECT_NEAR(row[k], scale * static_cast<float>(q), 0.5001F * scale);
  }
}

TEST(ConvertRowTest, Fp8TakesItsScaleFromTheWholeRow) {
  std::vector<float> row = Normal(100, 4);
  row[99] = 12.7F;
  row[98] = -12.7F;
  std::vector<uint8_t> bytes(static_cast<size_t>(ConvertedRowBytes(DType::kFp8, {10, 99})));
  ASSERT_EQ(bytes.size(), 93U);
  ASSERT_EQ(ConvertRow(row.data(), 100, {10, 99}, DType::kFp8, bytes.data()), -1);
  float scale = 0;
  std::memcpy(&scale, bytes.data(), 4);
  EXPECT_EQ(scale, 12.7F / 448.0F);
  EXPECT_EQ(bytes.back(), 0xfe);
  for (int64_t k = 10; k < 99; ++k) {
    // The bound of kernels/fp8.h.
    const double bound = (0x1p-4 + 0x1p-20) * std::abs(row[k]) + (0x1p-10 + 0x1p-20) * scale;
    EXPECT_NEAR(row[k], scale * E4M3ToF32(bytes[static_cast<size_t>(4 + k - 10)]), bound);
  }
}

TEST(ConvertRowTest, Fp8RowsOfZerosAndOfTinyNumbersAreZeros) {
  const std::vector<float> row = {0, 0x1p-97F, -0x1p-126F};
  std::vector<uint8_t> bytes(7, 0x55);
  ASSERT_EQ(ConvertRow(row.data(), 3, {0, 3}, DType::kFp8, bytes.data()), -1);
  float scale = 1;
  std::memcpy(&scale, bytes.data(), 4);
  EXPECT_EQ(scale, 0);
  for (size_t k = 4; k < 7; ++k) EXPECT_EQ(E4M3ToF32(bytes[k]), 0);
}

TEST(ConvertRowTest, NamesTheFirstColumnThatIsOutOfRange) {
  std::vector<float> row(70, 1.0F);
  std::vector<uint8_t> bytes(400);
  row[65] = 65504.0F;  // the largest f16
  EXPECT_EQ(ConvertRow(row.data(), 70, {0, 70}, DType::kF16, bytes.data()), -1);
  row[65] = -65520.0F;  // rounds to infinity
  EXPECT_EQ(ConvertRow(row.data(), 70, {0, 70}, DType::kF16, bytes.data()), 65);
  EXPECT_EQ(ConvertRow(row.data(), 70, {0, 65}, DType::kF16, bytes.data()), -1);
  EXPECT_EQ(ConvertRow(row.data(), 70, {0, 70}, DType::kBF16, bytes.data()), -1);
  row[65] = std::numeric_limits<float>::max();
  EXPECT_EQ(ConvertRow(row.data(), 70, {0, 70}, DType::kBF16, bytes.data()), 65);
  EXPECT_EQ(ConvertRow(row.data(), 70, {0, 70}, kInt4Groups, bytes.data()), 64);
  EXPECT_EQ(ConvertRow(row.data(), 70, {0, 70}, DType::kInt8, bytes.data()), -1);
  EXPECT_EQ(ConvertRow(row.data(), 70, {0, 70}, DType::kF32, bytes.data()), -1);
}

}  // namespace
}  // namespace pergola
