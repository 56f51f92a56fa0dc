#include "model/dtype.h"

#include <limits>

#include "tests/kernels/compare.h"

namespace pergola {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(DTypeTest, BytesFollowTheBlocks) {
  EXPECT_EQ(DTypeBytes(DType::kF32, 3), 12);
  EXPECT_EQ(DTypeBytes(DType::kBF16, 3), 6);
  EXPECT_EQ(DTypeBytes(DType::kF16, 3), 6);
  EXPECT_EQ(DTypeBytes(DType::kI32, 3), 12);
  EXPECT_EQ(DTypeBytes(DType::kQ8_0, 64), 68);
  EXPECT_EQ(DTypeBytes(DType::kQ4_0, 64), 36);
  EXPECT_EQ(DTypeBytes(DType::kQ4_1, 64), 40);
  EXPECT_DEATH(DTypeBytes(DType::kQ4_1, 33), "CHECK failed");
}

TEST(DTypeTest, NamesAreThoseOfTheFlags) {
  EXPECT_EQ(DTypeName(DType::kBF16), "bf16");
  EXPECT_EQ(DTypeName(DType::kQ4_1), "q4_1");
}

TEST(DTypeTest, EveryHalfSurvivesTheWayThroughF32) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float f16 = F16ToF32(half);
    const float bf16 = BF16ToF32(half);
    if (std::isnan(f16)) {
      EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(f16))));
    } else {
      ASSERT_EQ(F32ToF16(f16), half);
    }
    if (std::isnan(bf16)) {
      EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(bf16))));
    } else {
      ASSERT_EQ(F32ToBF16(bf16), half);
    }
  }
}

TEST(DTypeTest, KnownHalves) {
  EXPECT_EQ(F16ToF32(0x3c00), 1.0F);
  EXPECT_EQ(F16ToF32(0xc000), -2.0F);
  EXPECT_EQ(F16ToF32(0x7bff), 65504.0F);
  EXPECT_EQ(F16ToF32(0x0001), 0x1p-24F);
  EXPECT_EQ(F16ToF32(0x7c00), kInfinity);
  EXPECT_TRUE(std::signbit(F16ToF32(0x8000)));
  EXPECT_EQ(BF16ToF32(0x3f80), 1.0F);
  EXPECT_EQ(BF16ToF32(0xff80), -kInfinity);
}

// Halfway between each half and the next lies a tie, which goes to the even one; a hair to either
// side does not.
TEST(DTypeTest, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const auto above = static_cast<uint16_t>(bits + 1);
    const float middle = (F16ToF32(half) + F16ToF32(above)) / 2;  // exact
    ASSERT_EQ(F32ToF16(middle), bits % 2 == 0 ? half : above);
    ASSERT_EQ(F32ToF16(std::nextafter(middle, 0.0F)), half);
    ASSERT_EQ(F32ToF16(std::nextafter(middle, kInfinity)), above);
    ASSERT_EQ(F32ToF16(-middle), (bits % 2 == 0 ? half : above) | 0x8000);
  }
  for (uint32_t bits = 0x0100; bits < 0x7f7f; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const auto above = static_cast<uint16_t>(bits + 1);
    const float middle = BF16ToF32(half) / 2 + BF16ToF32(above) / 2;
    ASSERT_EQ(F32ToBF16(middle), bits % 2 == 0 ? half : above);
    ASSERT_EQ(F32ToBF16(std::nextafter(middle, 0.0F)), half);
    ASSERT_EQ(F32ToBF16(std::nextafter(middle, kInfinity)), above);
  }
}

TEST(DTypeTest, E4M3HasItsNumbersAndRoundsToNearestEven) {
  EXPECT_EQ(E4M3ToF32(0x01), 0x1p-9F);
  EXPECT_EQ(E4M3ToF32(0x08), 0x1p-6F);
  EXPECT_EQ(E4M3ToF32(0x38), 1.0F);
  EXPECT_EQ(E4M3ToF32(0x7e), 448.0F);
  EXPECT_EQ(E4M3ToF32(0xc4), -3.0F);
  for (uint32_t bits = 0; bits < 0x7e; ++bits) {
    const auto here = static_cast<uint8_t>(bits);
    const auto above = static_cast<uint8_t>(bits + 1);
    ASSERT_LT(E4M3ToF32(here), E4M3ToF32(above));
    ASSERT_EQ(F32ToE4M3(E4M3ToF32(here)), here);
    const float middle = (E4M3ToF32(here) + E4M3ToF32(above)) / 2;  // exact
    ASSERT_EQ(F32ToE4M3(middle), bits % 2 == 0 ? here : above) << bits;
    ASSERT_EQ(F32ToE4M3(std::nextafter(middle, 0.0F)), here);
    ASSERT_EQ(F32ToE4M3(std::nextafter(middle, kInfinity)), above);
    ASSERT_EQ(F32ToE4M3(-middle), (bits % 2 == 0 ? here : above) | 0x80);
  }
}

TEST(DTypeTest, E4M3EndsAt448AndKeepsNaN) {
  EXPECT_EQ(F32ToE4M3(448.0F), 0x7e);
  EXPECT_EQ(F32ToE4M3(1e30F), 0x7e);
  EXPECT_EQ(F32ToE4M3(-kInfinity), 0xfe);
  EXPECT_EQ(F32ToE4M3(1e-9F), 0);
  EXPECT_TRUE(std::isnan(E4M3ToF32(F32ToE4M3(kNaN))));
  EXPECT_TRUE(std::isnan(E4M3ToF32(0xff)));
}

TEST(DTypeTest, OverflowIsInfinityAndNaNStays) {
  EXPECT_EQ(F32ToF16(65519.9F), 0x7bff);
  EXPECT_EQ(F32ToF16(65520.0F), 0x7c00);
  EXPECT_EQ(F32ToF16(-1e30F), 0xfc00);
  EXPECT_EQ(F32ToF16(kInfinity), 0x7c00);
  EXPECT_EQ(F32ToF16(1e-9F), 0);
  EXPECT_EQ(F32ToBF16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(kNaN))));
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(kNaN))));
  // A NaN whose payload lies in the bits that are cut off.
  const uint32_t low = 0x7f800001;
  float nan;
  std::memcpy(&nan, &low, 4);
  EXPECT_TRUE(std::isnan(F16ToF32(F32ToF16(nan))));
  EXPECT_TRUE(std::isnan(BF16ToF32(F32ToBF16(nan))));
}

std::vector<float> Decode(DType dtype, const std::vector<uint8_t>& bytes) {
  std::vector<float> values(32);
  DecodeToF32(dtype, bytes.data(), 32, values.data());
  return values;
}

TEST(DTypeTest, DecodesQ8) {
  std::vector<uint8_t> block = {0x00, 0x38};  // 0.5
  for (int i = 0; i < 32; ++i) block.push_back(static_cast<uint8_t>(i * 8 - 128));
  const auto values = Decode(DType::kQ8_0, block);
  for (int i = 0; i < 32; ++i) {
    EXPECT_EQ(values[i], 0.5F * static_cast<float>(i * 8 - 128));
  }
}

TEST(DTypeTest, DecodesQ4WithLowNibblesFirst) {
  std::vector<uint8_t> nibbles;
  for (int i = 0; i < 16; ++i) nibbles.push_back(static_cast<uint8_t>(i | (15 - i) << 4));
  std::vector<uint8_t> q4_0 = {0x00, 0xc0};              // -2
  std::vector<uint8_t> q4_1 = {0x00, 0xc0, 0x00, 0x3c};  // -2, minimum 1
  q4_0.insert(q4_0.end(), nibbles.begin(), nibbles.end());
  q4_1.insert(q4_1.end(), nibbles.begin(), nibbles.end());
  const auto centred = Decode(DType::kQ4_0, q4_0);
  const auto shifted = Decode(DType::kQ4_1, q4_1);
  for (int i = 0; i < 16; ++i) {
    const auto low = static_cast<float>(i), high = static_cast<float>(15 - i);
    EXPECT_EQ(centred[i], -2 * (low - 8));
    EXPECT_EQ(centred[16 + i], -2 * (high - 8));
    EXPECT_EQ(shifted[i], -2 * low + 1);
    EXPECT_EQ(shifted[16 + i], -2 * high + 1);
  }
}

TEST(DTypeTest, DecodesDenseRows) {
  const uint16_t bf16[2] = {0x3f80, 0xc000};
  const uint16_t f16[2] = {0x3c00, 0xc000};
  const float f32[2] = {1, -2};
  float out[2];
  DecodeToF32(DType::kBF16, bf16, 2, out);
  EXPECT_TRUE(CompareBits({out[0], out[1]}, {1, -2}));
  DecodeToF32(DType::kF16, f16, 2, out);
  EXPECT_TRUE(CompareBits({out[0], out[1]}, {1, -2}));
  DecodeToF32(DType::kF32, f32, 2, out);
  EXPECT_TRUE(CompareBits({out[0], out[1]}, {1, -2}));
  DecodeToF32(DType::kF32, nullptr, 0, out);
}

TEST(DTypeDeathTest, RefusesPartsOfBlocksAndIntegers) {
  float out[32];
  EXPECT_DEATH(DecodeToF32(DType::kQ8_0, out, 31, out), "CHECK failed");
  for (const DType dtype : {DType::kI32, DType::kInt8, DType::kFp8}) {
    EXPECT_DEATH(DecodeToF32(dtype, out, 1, out), "CHECK failed");
  }
}

}  // namespace
}  // namespace pergola
