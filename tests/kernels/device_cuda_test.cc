// What kernels/cuda/device.cuh promises, on the emulator or on a GPU.
#include <cmath>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda/device_kernels.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

class DeviceCudaTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
  }
};

TEST_F(DeviceCudaTest, SumsAndMaximaReachAllThreads) {
  const TestCudaContext context;
  for (const int threads : {32, 96, 256, 1024}) {
    constexpr int kBlocks = 3;
    const std::vector<float> values = RandomValues(int64_t{kBlocks} * threads, 1);
    const DeviceArray<float> x(values), sums(kBlocks), maxima(kBlocks), warps(kBlocks * threads);
    SumsCuda(context, x.data(), kBlocks, threads, sums.data(), maxima.data(), warps.data());
    std::vector<float> want_sums(kBlocks), want_maxima(kBlocks, -INFINITY), want_warps;
    double magnitude = 0;
    const auto block_values = static_cast<size_t>(threads);
    for (size_t b = 0; b < kBlocks; ++b) {
      double sum = 0, absolute = 0;
      for (size_t i = 0; i < block_values; ++i) {
        const float v = values[b * block_values + i];
        sum += v;
        absolute += std::abs(v);
        want_maxima[b] = std::fmax(want_maxima[b], v);
      }
      want_sums[b] = static_cast<float>(sum);
      magnitude = std::fmax(magnitude, absolute);
    }
    for (size_t i = 0; i < values.size(); ++i) {
      double sum = 0;
      for (size_t j = 0; j < 32; ++j) sum += values[i / 32 * 32 + j];
      want_warps.push_back(static_cast<float>(sum));
    }
    // Two butterflies of depth 5 round each term's path at most 10 times, and `want` rounds once.
    const auto bound = [&](size_t) { return 11 * kUnit * magnitude; };
    EXPECT_TRUE(CompareWith(sums.Read(), want_sums, bound)) << threads;
    EXPECT_TRUE(CompareWith(warps.Read(), want_warps, bound)) << threads;
    EXPECT_TRUE(CompareBits(maxima.Read(), want_maxima)) << threads;
  }
}

TEST_F(DeviceCudaTest, StagedCopiesArriveAndPadWithZeros) {
  const TestCudaContext context;
  const std::vector<float> values = RandomValues(5 * 512 - 100, 2);
  const DeviceArray<float> x(values), y(5 * 512);
  StagedCopyCuda(context, x.data(), x.size(), y.size(), y.data());
  std::vector<float> want = values;
  want.resize(5 * 512, 0.0F);
  EXPECT_TRUE(CompareBits(y.Read(), want));
}

TEST_F(DeviceCudaTest, MatrixLoadsDealElementsToLanes) {
  const TestCudaContext context;
  std::vector<uint16_t> values(4 * 64);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(i * 7 + 1);
  const DeviceArray<uint16_t> x(values);
  const DeviceArray<uint32_t> r(128);
  for (const bool transposed : {false, true}) {
    LoadMatrixCuda(context, x.data(), transposed, r.data());
    const std::vector<uint32_t> got = r.Read();
    for (size_t lane = 0; lane < 32; ++lane) {
      for (size_t i = 0; i < 4; ++i) {
        const auto element = [&](size_t k) -> uint32_t {
          const size_t row = transposed ? 2 * (lane % 4) + k : lane / 4;
          const size_t column = transposed ? lane / 4 : 2 * (lane % 4) + k;
          return values[i * 64 + row * 8 + column];
        };
        EXPECT_EQ(got[lane * 4 + i], element(1) << 16 | element(0)) << lane << " " << i;
      }
    }
  }
}

TEST_F(DeviceCudaTest, MmaMultipliesMatrices) {
  const TestCudaContext context;
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const std::vector<float> a = RandomValues(256, 3), b = RandomValues(128, 4),
                             c = RandomValues(128, 5);
    std::vector<uint16_t> a_bits, b_bits;
    const auto encode = dtype == DType::kF16 ? F32ToF16 : F32ToBF16;
    const auto decode = dtype == DType::kF16 ? F16ToF32 : BF16ToF32;
    for (const float v : a) a_bits.push_back(encode(v));
    for (const float v : b) b_bits.push_back(encode(v));
    const DeviceArray<uint16_t> a_device(a_bits), b_device(b_bits);
    const DeviceArray<float> c_device(c), d(128);
    MmaCuda(context, dtype, a_device.data(), b_device.data(), c_device.data(), d.data());
    std::vector<float> want;
    std::vector<double> bounds;
    for (size_t i = 0; i < 128; ++i) {
      double sum = c[i], magnitude = std::abs(c[i]);
      for (size_t k = 0; k < 16; ++k) {
        const double product = static_cast<double>(decode(a_bits[i / 8 * 16 + k])) *
                               static_cast<double>(decode(b_bits[k * 8 + i % 8]));
        sum += product;
        magnitude += std::abs(product);
      }
      want.push_back(static_cast<float>(sum));
      // 17 terms in any order; tensor cores may cut rather than round each (2 units).
      bounds.push_back(2 * 17 * kUnit * magnitude);
    }
    EXPECT_TRUE(CompareWith(d.Read(), want, [&](size_t i) { return bounds[i]; }));
  }
}

// Every 16-bit pattern, the values halfway between neighbours and just beside, and random bits.
std::vector<float> ConversionCases(float (*decode)(uint16_t)) {
  std::vector<float> values;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float v = decode(static_cast<uint16_t>(bits));
    const float next = decode(static_cast<uint16_t>(bits + 1));
    values.push_back(v);
    if (!std::isfinite(v) || !std::isfinite(next)) continue;
    const auto halfway = static_cast<float>((static_cast<double>(v) + next) / 2);
    values.insert(values.end(), {halfway, std::nextafterf(halfway, INFINITY),
                                 std::nextafterf(halfway, -INFINITY)});
  }
  std::mt19937 generator(7);
  for (int i = 0; i < 10000; ++i) {
    const auto bits = static_cast<uint32_t>(generator());
    float v;
    std::memcpy(&v, &bits, sizeof(v));
    values.push_back(v);
  }
  for (const float v : {65519.0F, 65520.0F, 3.4e38F}) values.insert(values.end(), {v, -v});
  return values;
}

TEST_F(DeviceCudaTest, ConversionsRoundToNearestEven) {
  const TestCudaContext context;
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    const auto encode = dtype == DType::kF16 ? F32ToF16 : F32ToBF16;
    const auto decode = dtype == DType::kF16 ? F16ToF32 : BF16ToF32;
    const std::vector<float> values = ConversionCases(decode);
    const DeviceArray<float> x(values), back(x.size());
    const DeviceArray<uint16_t> bits(x.size());
    ConvertCuda(context, dtype, x.data(), x.size(), bits.data(), back.data());
    const std::vector<uint16_t> got_bits = bits.Read();
    const std::vector<float> got_back = back.Read();
    int64_t wrong = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t want = encode(values[i]);
      const bool same =
          std::isnan(values[i]) ? std::isnan(decode(got_bits[i])) : got_bits[i] == want;
      wrong += same && SameBits(got_back[i], decode(got_bits[i])) ? 0 : 1;
    }
    EXPECT_EQ(wrong, 0) << DTypeName(dtype);
  }
}

TEST_F(DeviceCudaTest, E4M3RoundsAsOnTheHost) {
  const TestCudaContext context;
  std::vector<float> values = ConversionCases([](uint16_t bits) {
    return bits < 0x100 ? E4M3ToF32(static_cast<uint8_t>(bits)) : F16ToF32(bits);
  });
  values.resize(values.size() / 4 * 4);
  const DeviceArray<float> x(values);
  const DeviceArray<uint8_t> y(x.size());
  PackE4M3Cuda(context, x.data(), x.size(), y.data());
  const std::vector<uint8_t> got = y.Read();
  int64_t wrong = 0;
  for (size_t i = 0; i < values.size(); ++i) wrong += got[i] == F32ToE4M3(values[i]) ? 0 : 1;
  EXPECT_EQ(wrong, 0);
}

TEST_F(DeviceCudaTest, ShufflesAndVotesSeeAllLanes) {
  const TestCudaContext context;
  const DeviceArray<int> y(32 * 8);
  VotesCuda(context, y.data());
  std::vector<int> want;
  for (int lane = 0; lane < 32; ++lane) {
    want.insert(want.end(), {7, lane < 3 ? lane : lane - 3, lane > 28 ? lane : lane + 3, lane ^ 5,
                             static_cast<int>(0xaaaaaaaa), 1, 0, 22});
  }
  EXPECT_EQ(y.Read(), want);
}

}  // namespace
}  // namespace pergola
