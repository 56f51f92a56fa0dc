// The block formats against the gguf package (scripts/goldens_quants.py).
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/kernels/compare.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

std::string ReadFile(DType dtype, const char* ending) {
  const std::string path =
      std::string(PERGOLA_TEST_DATA) + "/golden/quants/" + std::string(DTypeName(dtype)) + ending;
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class QuantGoldenTest : public testing::TestWithParam<DType> {};

TEST_P(QuantGoldenTest, DecodesToTheJudgesValues) {
  const DType dtype = GetParam();
  const std::string blocks = ReadFile(dtype, ".blocks");
  const std::string judged = ReadFile(dtype, ".f32");
  std::vector<float> want(judged.size() / sizeof(float)), got(want.size());
  ASSERT_EQ(want.size(), 1024U);
  std::memcpy(want.data(), judged.data(), judged.size());
  const auto values = static_cast<int64_t>(want.size());
  ASSERT_EQ(static_cast<int64_t>(blocks.size()), DTypeBytes(dtype, values));
  DecodeToF32(dtype, blocks.data(), values, got.data());
  EXPECT_TRUE(CompareBits(got, want));
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantGoldenTest, testing::ValuesIn(kBlockTypes),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

}  // namespace
}  // namespace pergola
