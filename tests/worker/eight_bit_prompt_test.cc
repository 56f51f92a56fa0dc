// Prompts of more rows than a GPU streams weights for: under int8 and fp8 their tokens are in eight
// bits too (kernels/cuda/matmul.h).
#include "gtest/gtest.h"
#include "kernels/cuda/cuda_stream.h"
#include "tests/worker/executor_fixture.h"
#include "tests/worker/format_noise.h"

namespace pergola {
namespace {

// Every matrix has outputs in sixteens.
ModelSpec Spec() {
  ModelSpec spec = TinySpec();
  spec.heads = 8;
  spec.kv_heads = 4;
  spec.ffn = 96;
  spec.context_length = 256;
  return spec;
}

class EightBitPromptTest : public testing::TestWithParam<WeightFormat> {
 protected:
  void SetUp() override {
    if (CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
  }
  EightBitPromptTest() : checkpoint_(Spec(), MakeOptions()), prompt_(RandomIds(150)) {}
  static MemoryCheckpoint::Options MakeOptions() {
    MemoryCheckpoint::Options options;
    options.dtype = [](Role) { return DType::kBF16; };
    return options;
  }

  const MemoryCheckpoint checkpoint_;
  const std::vector<int32_t> prompt_;
};

TEST_P(EightBitPromptTest, LogitsLieWithinTheNoiseOfRoundingWeightsAndTokens) {
  const std::vector<float> f32 = AllLogits(checkpoint_, prompt_, WeightFormat::kF32);
  const double bound = NoiseBound(checkpoint_, prompt_, GetParam(), f32);
  const std::vector<float> got =
      AllLogits(checkpoint_, prompt_, GetParam(), {}, {Device::kCuda, DType::kBF16});
  EXPECT_LE(Worst(got, f32), bound);
  RecordProperty("worst_over_bound", std::to_string(Worst(got, f32) / bound));
}

// The first 100 tokens do not depend on the rest; alone they are multiplied as they are.
TEST_P(EightBitPromptTest, TokensOfLongPromptsAloneAreRounded) {
  constexpr LogitsPlace kGpu = {Device::kCuda, DType::kBF16};
  const std::vector<int32_t> start(prompt_.begin(), prompt_.begin() + 100);
  std::vector<float> whole = AllLogits(checkpoint_, prompt_, GetParam(), {}, kGpu);
  whole.resize(static_cast<size_t>(100 * checkpoint_.spec().vocabulary));
  const std::vector<float> few = AllLogits(checkpoint_, start, GetParam(), {}, kGpu);
  EXPECT_GT(Worst(whole, few), 0);
  const std::vector<float> f32 = AllLogits(checkpoint_, start, WeightFormat::kF32);
  double squares = 0, few_squares = 0;
  for (size_t i = 0; i < f32.size(); ++i) {
    squares += std::pow(static_cast<double>(whole[i]) - f32[i], 2);
    few_squares += std::pow(static_cast<double>(few[i]) - f32[i], 2);
  }
  EXPECT_GT(squares, few_squares);
}

INSTANTIATE_TEST_SUITE_P(Formats, EightBitPromptTest,
                         testing::Values(WeightFormat::kInt8, WeightFormat::kFp8),
                         [](const auto& test) { return WeightFormatName(test.param); });

}  // namespace
}  // namespace pergola
