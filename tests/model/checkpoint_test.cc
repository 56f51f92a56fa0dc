#include "model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/model/test_files.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;
using testing::TinyLlama;

std::string OpenError(const std::string& path) {
  const auto opened = Checkpoint::Open(path);
  EXPECT_FALSE(opened.ok());
  EXPECT_EQ(opened.status().message().find('\n'), std::string::npos);
  return std::string(opened.status().message());
}

// The weight decoded to f32, rows in Hugging Face's order.
std::vector<float> ReadWeight(const Checkpoint& checkpoint, const WeightBinding& binding) {
  const TensorInfo* tensor = checkpoint.Find(binding.tensor);
  EXPECT_NE(tensor, nullptr);
  std::vector<uint8_t> raw(static_cast<size_t>(tensor->bytes));
  EXPECT_TRUE(checkpoint.Read(*tensor, 0, absl::MakeSpan(raw)).ok());
  int64_t values = 1;
  for (const int64_t dim : tensor->shape) values *= dim;
  std::vector<float> out(static_cast<size_t>(values));
  DecodeToF32(tensor->dtype, raw.data(), values, out.data());
  if (binding.row_order == RowOrder::kPlain) return out;
  const int64_t head_dim = checkpoint.spec().head_dim;
  const int64_t rows = tensor->shape[0];
  const int64_t width = values / rows;
  std::vector<float> plain(out.size());
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t in_head = row % head_dim;
    const int64_t to = row - in_head + in_head / 2 + in_head % 2 * head_dim / 2;
    std::copy_n(out.begin() + row * width, width, plain.begin() + to * width);
  }
  return plain;
}

void ExpectWeights(const Checkpoint& checkpoint, const TinyLlama& model, DType stored) {
  ASSERT_FALSE(checkpoint.weights().empty());
  for (const WeightBinding& binding : checkpoint.weights()) {
    EXPECT_EQ(binding.shape, ShapeOf(checkpoint.spec(), binding.role));
    EXPECT_EQ(ReadWeight(checkpoint, binding),
              testing::TinyWeight(model, binding.role, binding.layer, stored))
        << RoleName(binding.role, binding.layer);
  }
}

class EveryDType : public ::testing::TestWithParam<DType> {};

TEST_P(EveryDType, ComesBackFromGgufWithRowsInHuggingFaceOrder) {
  const TempDir dir;
  TinyLlama model;
  model.attention_bias = model.mlp_bias = true;
  testing::WriteTinyGguf(model, GetParam(), dir.File("m.gguf"));
  const auto checkpoint = Checkpoint::Open(dir.File("m.gguf"));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->weights().size(), 2U * 16 + 3);
  EXPECT_EQ((*checkpoint)->spec().name, "Tiny");
  ExpectWeights(**checkpoint, model, GetParam());
}

TEST_P(EveryDType, ComesBackFromSafetensors) {
  const TempDir dir;
  const TinyLlama model;
  testing::WriteTinyHf(model, GetParam(), dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ExpectWeights(**checkpoint, model, GetParam());
}

INSTANTIATE_TEST_SUITE_P(CheckpointTest, EveryDType,
                         ::testing::Values(DType::kF32, DType::kBF16, DType::kF16, DType::kQ8_0,
                                           DType::kQ4_0, DType::kQ4_1),
                         [](const auto& test) { return std::string(DTypeName(test.param)); });

TEST(CheckpointTest, FormatsAgreeOnTheModel) {
  const TempDir dir;
  TinyLlama model;
  model.heads = 9;
  model.kv_heads = 3;
  model.head_dim = 8;
  model.attention_bias = model.mlp_bias = model.tied = true;
  testing::WriteTinyGguf(model, DType::kF32, dir.File("m.gguf"));
  testing::WriteTinyHf(model, DType::kF32, dir.path(), 3);
  const auto gguf = Checkpoint::Open(dir.File("m.gguf"));
  const auto hf = Checkpoint::Open(dir.path());
  ASSERT_TRUE(gguf.ok() && hf.ok()) << gguf.status() << hf.status();
  const ModelSpec& a = (*gguf)->spec();
  const ModelSpec& b = (*hf)->spec();
  EXPECT_EQ((*hf)->files().size(), 3U);
  EXPECT_EQ(std::tie(a.architecture, a.layers, a.hidden, a.heads, a.kv_heads, a.head_dim, a.ffn),
            std::tie(b.architecture, b.layers, b.hidden, b.heads, b.kv_heads, b.head_dim, b.ffn));
  EXPECT_EQ(std::tie(a.vocabulary, a.context_length, a.norm_epsilon, a.attention_scale, a.qkv_bias,
                     a.output_bias, a.mlp_bias, a.tied_embeddings),
            std::tie(b.vocabulary, b.context_length, b.norm_epsilon, b.attention_scale, b.qkv_bias,
                     b.output_bias, b.mlp_bias, b.tied_embeddings));
  EXPECT_EQ(a.rope.inverse_frequency, b.rope.inverse_frequency);
  EXPECT_TRUE(a.tied_embeddings && a.qkv_bias && a.output_bias && a.mlp_bias);
  ASSERT_EQ((*gguf)->weights().size(), (*hf)->weights().size());
  for (size_t i = 0; i < (*hf)->weights().size(); ++i) {
    EXPECT_EQ((*gguf)->weights()[i].role, (*hf)->weights()[i].role);
    EXPECT_EQ((*gguf)->weights()[i].layer, (*hf)->weights()[i].layer);
  }
}

// Rewrites model.safetensors of a tiny checkpoint after `change`.
template <typename Change>
void RewriteHf(const TinyLlama& model, const std::string& directory, Change change) {
  testing::WriteTinyHf(model, DType::kF32, directory);
  const auto checkpoint = Checkpoint::Open(directory);
  ASSERT_TRUE(checkpoint.ok());
  std::vector<testing::RawTensor> tensors;
  for (const TensorInfo& tensor : (*checkpoint)->tensors()) {
    std::string bytes(static_cast<size_t>(tensor.bytes), '\0');
    const absl::Span<uint8_t> out(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size());
    ASSERT_TRUE((*checkpoint)->Read(tensor, 0, out).ok());
    tensors.push_back({tensor.name, "F32", tensor.shape, bytes});
  }
  change(&tensors);
  testing::WriteFile(directory + "/model.safetensors", testing::SafetensorsBytes(tensors));
}

testing::RawTensor* Named(std::vector<testing::RawTensor>* tensors, const std::string& name) {
  for (testing::RawTensor& tensor : *tensors) {
    if (tensor.name == name) return &tensor;
  }
  ADD_FAILURE() << name;
  return nullptr;
}

TEST(CheckpointTest, NamesAMissingTensor) {
  const TempDir dir;
  RewriteHf(TinyLlama(), dir.path(), [](auto* tensors) {
    Named(tensors, "model.layers.1.mlp.up_proj.weight")->name = "elsewhere";
  });
  EXPECT_EQ(
      OpenError(dir.path()),
      dir.path() + ": tensor \"model.layers.1.mlp.up_proj.weight\" of shape [96, 64] is missing");
}

TEST(CheckpointTest, NamesBothShapesOfATensorOfTheWrongShape) {
  const TempDir dir;
  RewriteHf(TinyLlama(), dir.path(), [](auto* tensors) {
    Named(tensors, "model.layers.0.self_attn.k_proj.weight")->shape = {64, 32};
  });
  EXPECT_THAT(OpenError(dir.path()),
              HasSubstr("k_proj.weight\" has shape [64, 32], but the configuration says [32, 64]"));
}

TEST(CheckpointTest, NamesAWeightOfAnUnsupportedType) {
  const TempDir dir;
  RewriteHf(TinyLlama(), dir.path(),
            [](auto* tensors) { Named(tensors, "model.norm.weight")->dtype = "I32"; });
  EXPECT_THAT(OpenError(dir.path()), HasSubstr("\"model.norm.weight\" has type I32, which is not"));
}

TEST(CheckpointTest, TakesNamesWithoutPrefix) {
  const TempDir dir;
  TinyLlama model;
  model.tied = true;
  RewriteHf(model, dir.path(), [](auto* tensors) {
    for (auto& tensor : *tensors) tensor.name = tensor.name.substr(6);
  });
  const auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ExpectWeights(**checkpoint, model, DType::kF32);
}

TEST(CheckpointTest, StaysTiedWhenTheStoredHeadEqualsTheEmbedding) {
  const TempDir dir;
  TinyLlama model;
  model.tied = true;
  for (const bool differs : {false, true}) {
    RewriteHf(model, dir.path(), [&](auto* tensors) {
      testing::RawTensor head = *Named(tensors, "model.embed_tokens.weight");
      head.name = "lm_head.weight";
      if (differs) head.bytes.back() ^= 1;
      tensors->push_back(head);
    });
    const auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->spec().tied_embeddings, !differs);
    EXPECT_EQ((*checkpoint)->weights().back().role, differs ? Role::kLmHead : Role::kFinalNorm);
  }
}

TEST(CheckpointTest, AppliesTheRopeFactorsOfAGguf) {
  const TempDir dir;
  TinyLlama model;
  const std::string bytes = testing::TinyGgufBytes(model, DType::kF32);
  testing::WriteFile(dir.File("plain.gguf"), bytes);
  const auto plain = Checkpoint::Open(dir.File("plain.gguf"));
  ASSERT_TRUE(plain.ok());
  for (const float factor : {2.0F, 0.0F}) {
    testing::GgufExtra extra = {"rope_freqs.weight", {8}, std::vector<float>(8, factor)};
    testing::WriteFile(dir.File("m.gguf"), testing::TinyGgufBytes(model, DType::kF32, {extra}));
    const auto checkpoint = Checkpoint::Open(dir.File("m.gguf"));
    ASSERT_EQ(checkpoint.ok(), factor == 2.0F) << checkpoint.status();
    if (!checkpoint.ok()) {
      EXPECT_THAT(std::string(checkpoint.status().message()), HasSubstr("must be positive"));
      continue;
    }
    for (size_t i = 0; i < 8; ++i) {
      EXPECT_EQ((*checkpoint)->spec().rope.inverse_frequency[i],
                (*plain)->spec().rope.inverse_frequency[i] / 2);
    }
  }
}

TEST(CheckpointTest, RefusesAGgufWhoseLayersDisagreeAboutBiases) {
  const TempDir dir;
  const testing::GgufExtra extra = {"blk.0.attn_q.bias", {64}, std::vector<float>(64, 0)};
  testing::WriteFile(dir.File("m.gguf"), testing::TinyGgufBytes(TinyLlama(), DType::kF32, {extra}));
  EXPECT_THAT(OpenError(dir.File("m.gguf")), HasSubstr("\"blk.0.attn_k.bias\" of shape [32]"));
}

TEST(GgufCheckpointTest, RefusesALayerTensorThatTheArchitectureLacks) {
  const TempDir dir;
  const testing::GgufExtra extra = {"blk.1.attn_q_norm.weight", {16}, std::vector<float>(16, 1)};
  testing::WriteFile(dir.File("m.gguf"), testing::TinyGgufBytes(TinyLlama(), DType::kF32, {extra}));
  EXPECT_THAT(OpenError(dir.File("m.gguf")),
              HasSubstr("m.gguf: tensor \"blk.1.attn_q_norm.weight\" is part of no llama model"));
}

TEST(CheckpointTest, TellsWhatNothingUses) {
  const TempDir dir;
  TinyLlama model;
  model.attention_bias = true;
  testing::WriteTinyHf(model, DType::kF32, dir.path());
  auto whole = Checkpoint::Open(dir.path());
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_THAT(UnusedTensors(**whole), ::testing::IsEmpty());
  auto config = nlohmann::json::parse(testing::ReadFile(dir.File("config.json")));
  config["attention_bias"] = false;
  testing::WriteFile(dir.File("config.json"), config.dump());
  whole = Checkpoint::Open(dir.path());
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(UnusedTensors(**whole).size(), 2U * 4);
  EXPECT_EQ(UnusedTensors(**whole)[0], "model.layers.0.self_attn.k_proj.bias");
}

TEST(CheckpointTest, RefusesABiasThatNothingWouldAdd) {
  const TempDir dir;
  const testing::GgufExtra extra = {"blk.1.ffn_down.bias", {64}, std::vector<float>(64, 0)};
  testing::WriteFile(dir.File("m.gguf"), testing::TinyGgufBytes(TinyLlama(), DType::kF32, {extra}));
  EXPECT_THAT(OpenError(dir.File("m.gguf")), HasSubstr("\"blk.0.ffn_gate.bias\""));
}

TEST(CheckpointTest, ReportsAFileThatShrankAfterOpening) {
  const TempDir dir;
  testing::WriteTinyGguf(TinyLlama(), DType::kF32, dir.File("m.gguf"));
  const auto checkpoint = Checkpoint::Open(dir.File("m.gguf"));
  ASSERT_TRUE(checkpoint.ok());
  std::filesystem::resize_file(dir.File("m.gguf"), 4096);
  const TensorInfo* tensor = (*checkpoint)->Find("output.weight");
  std::vector<uint8_t> out(16);
  EXPECT_EQ((*checkpoint)->Read(*tensor, 0, absl::MakeSpan(out)).code(),
            absl::StatusCode::kDataLoss);
}

TEST(CheckpointTest, RefusesReadsOutsideATensor) {
  const TempDir dir;
  testing::WriteTinyGguf(TinyLlama(), DType::kF32, dir.File("m.gguf"));
  const auto checkpoint = Checkpoint::Open(dir.File("m.gguf"));
  ASSERT_TRUE(checkpoint.ok());
  const TensorInfo* norm = (*checkpoint)->Find("output_norm.weight");
  std::vector<uint8_t> out(16);
  EXPECT_FALSE((*checkpoint)->Read(*norm, norm->bytes - 15, absl::MakeSpan(out)).ok());
  EXPECT_FALSE((*checkpoint)->Read(*norm, -1, absl::MakeSpan(out)).ok());
}

TEST(CheckpointTest, FingerprintSeesConfigTokenizerAndWeights) {
  const TempDir dir;
  testing::WriteTinyHf(TinyLlama(), DType::kF32, dir.path());
  const auto fingerprint = [&] {
    const auto checkpoint = Checkpoint::Open(dir.path());
    EXPECT_TRUE(checkpoint.ok());
    return (*checkpoint)->Fingerprint().value_or("");
  };
  const std::string first = fingerprint();
  EXPECT_EQ(first.size(), 64U);
  EXPECT_EQ(fingerprint(), first);

  std::string weights = testing::ReadFile(dir.File("model.safetensors"));
  weights.back() ^= 1;
  testing::WriteFile(dir.File("model.safetensors"), weights);
  const std::string second = fingerprint();
  EXPECT_NE(second, first);

  testing::WriteFile(dir.File("config.json"), testing::ReadFile(dir.File("config.json")) + " ");
  const std::string third = fingerprint();
  EXPECT_NE(third, second);

  testing::WriteFile(dir.File("tokenizer.json"), "{}");
  EXPECT_NE(fingerprint(), third);
}

TEST(CheckpointTest, FingerprintDoesNotDependOnTheDirectory) {
  const TempDir a;
  const TempDir b;
  testing::WriteTinyHf(TinyLlama(), DType::kF32, a.path());
  testing::WriteTinyHf(TinyLlama(), DType::kF32, b.path());
  EXPECT_EQ((*Checkpoint::Open(a.path()))->Fingerprint().value(),
            (*Checkpoint::Open(b.path()))->Fingerprint().value());
}

TEST(CheckpointTest, SaysWhatIsWrongWithAPath) {
  const TempDir dir;
  EXPECT_THAT(OpenError("/nonexistent"), HasSubstr("No such file"));
  EXPECT_THAT(OpenError(dir.path()), HasSubstr("config.json: cannot open"));
  testing::WriteTinyHf(TinyLlama(), DType::kF32, dir.path());
  EXPECT_THAT(OpenError(dir.File("model.safetensors")), HasSubstr("give the directory"));
  EXPECT_THAT(OpenError(dir.File("config.json")), HasSubstr("not with \"GGUF\""));
  std::filesystem::remove(dir.File("model.safetensors"));
  EXPECT_THAT(OpenError(dir.path()), HasSubstr("holds neither model.safetensors nor"));
}

TEST(CheckpointTest, SurvivesFlippedBitsInBothHeaders) {
  const TempDir dir;
  TinyLlama model;
  model.layers = 1;
  model.hidden = model.ffn = model.vocabulary = 32;
  model.heads = model.kv_heads = 2;
  const std::string gguf = testing::TinyGgufBytes(model, DType::kQ4_0);
  const std::string path = dir.File("m.gguf");
  testing::WriteTinyHf(model, DType::kF32, dir.path());
  const std::string hf = testing::ReadFile(dir.File("model.safetensors"));
  testing::WriteFile(path, gguf);
  int refused = 0;
  // In place, without truncating: file systems flush a rewritten file to the disk.
  const auto open_with = [&](const std::string& file, size_t bit, char byte, const auto& target) {
    const auto at = static_cast<std::streamoff>(bit / 8);
    std::fstream stream(file, std::ios::binary | std::ios::in | std::ios::out);
    const char flipped = static_cast<char>(byte ^ (1 << (bit % 8)));
    stream.seekp(at).write(&flipped, 1).flush();
    refused += Checkpoint::Open(target).ok() ? 0 : 1;
    stream.seekp(at).write(&byte, 1).flush();
  };
  for (size_t bit = 0; bit < size_t{8} * 1200; bit += 3) {
    open_with(path, bit, gguf[bit / 8], path);
    open_with(dir.File("model.safetensors"), bit, hf[bit / 8], dir.path());
  }
  EXPECT_GT(refused, 2000);
  EXPECT_TRUE(Checkpoint::Open(path).ok() && Checkpoint::Open(dir.path()).ok());
}

}  // namespace
}  // namespace pergola
