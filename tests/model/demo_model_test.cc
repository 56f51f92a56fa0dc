// The real demo model, where it is on this machine (scripts/demo fetches it).
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <set>

#include "model/checkpoint.h"
#include "model/text_parts.h"

namespace pergola {
namespace {

class DemoModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* home = std::getenv("HOME");
    path_ = std::string(home == nullptr ? "" : home) +
            "/.cache/pergola/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (!std::filesystem::exists(path_)) GTEST_SKIP() << path_ << " is not there";
  }
  std::string path_;
};

TEST_F(DemoModelTest, OpensWithItsPublishedShape) {
  const auto checkpoint = Checkpoint::Open(path_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelSpec& spec = (*checkpoint)->spec();
  EXPECT_EQ(spec.layers, 30);
  EXPECT_EQ(spec.hidden, 576);
  EXPECT_EQ(spec.heads, 9);
  EXPECT_EQ(spec.kv_heads, 3);
  EXPECT_EQ(spec.head_dim, 64);
  EXPECT_EQ(spec.ffn, 1536);
  EXPECT_EQ(spec.vocabulary, 49152);
  EXPECT_EQ(spec.context_length, 8192);
  EXPECT_TRUE(spec.tied_embeddings);
  EXPECT_EQ((*checkpoint)->weights().size(), 30U * 9 + 2);
  std::set<DType> dtypes;
  for (const TensorInfo& tensor : (*checkpoint)->tensors()) dtypes.insert(tensor.dtype);
  EXPECT_EQ(dtypes, (std::set<DType>{DType::kF32, DType::kQ8_0, DType::kQ4_1}));
}

TEST_F(DemoModelTest, HoldsFiniteWeightsOfPlausibleSize) {
  const auto checkpoint = Checkpoint::Open(path_);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const TensorInfo* tensor = (*checkpoint)->Find("blk.7.ffn_down.weight");
  ASSERT_NE(tensor, nullptr);
  std::vector<uint8_t> raw(static_cast<size_t>(tensor->bytes));
  ASSERT_TRUE((*checkpoint)->Read(*tensor, 0, absl::MakeSpan(raw)).ok());
  std::vector<float> values(static_cast<size_t>(tensor->shape[0] * tensor->shape[1]));
  DecodeToF32(tensor->dtype, raw.data(), static_cast<int64_t>(values.size()), values.data());
  double squares = 0;
  for (const float value : values) squares += static_cast<double>(value) * value;
  const double root = std::sqrt(squares / static_cast<double>(values.size()));
  // A misread block would give values of the size of raw nibbles or of broken halfs.
  EXPECT_GT(root, 0.01);
  EXPECT_LT(root, 1.0);
}

TEST_F(DemoModelTest, CarriesItsVocabularyAndTemplate) {
  const auto parts = LoadTextParts(path_);
  ASSERT_TRUE(parts.ok()) << parts.status();
  ASSERT_TRUE(parts->gguf.has_value());
  EXPECT_EQ(parts->gguf->pre, "smollm");
  EXPECT_EQ(parts->gguf->tokens.size(), 49152U);
  EXPECT_EQ(parts->gguf->merges.size(), 48900U);
  EXPECT_EQ(parts->gguf->tokens[2], "<|im_end|>");
  EXPECT_EQ(parts->defaults.eos_ids, std::vector<int32_t>{2});
  EXPECT_FALSE(parts->chat_template.empty());
}

}  // namespace
}  // namespace pergola
