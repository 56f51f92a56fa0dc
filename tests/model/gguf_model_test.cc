// What GGUF metadata of each architecture means, and what is refused. Whole models are judged in
// tests/worker/golden_test.cc.
#include "model/gguf_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "absl/strings/str_cat.h"
#include "model/family.h"
#include "tests/model/test_files.h"

namespace pergola {
namespace {

using testing::GgufBuilder;
using ::testing::HasSubstr;
using Change = std::function<void(GgufBuilder*)>;

const char* const kArchitectures[] = {"llama", "bloom", "starcoder", "gpt2",
                                      "qwen2", "qwen3", "gemma3"};

GgufBuilder Small(const std::string& architecture) {
  GgufBuilder gguf;
  gguf.String("general.architecture", architecture);
  for (const char* key :
       {"block_count", "context_length", "vocab_size", "embedding_length", "feed_forward_length"}) {
    gguf.Uint32(absl::StrCat(architecture, ".", key), 32);
  }
  gguf.Uint32(architecture + ".attention.head_count", 4);
  gguf.Float32(architecture + ".attention.layer_norm_rms_epsilon", 1e-5F);
  gguf.Float32(architecture + ".attention.layer_norm_epsilon", 1e-5F);
  return gguf;
}

absl::StatusOr<ModelSpec> SpecOf(const std::string& architecture, const Change& change) {
  GgufBuilder gguf = Small(architecture);
  change(&gguf);
  const std::string bytes = gguf.Build();
  TensorTable table;
  const auto header = AddGguf(
      MakeMemorySource(
          "m.gguf", absl::MakeSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size())),
      &table);
  EXPECT_TRUE(header.ok()) << header.status();
  const auto family = FindGgufFamily(header->metadata);
  if (!family.ok()) return family.status();
  return (*family)->spec_from_gguf(header->metadata);
}

std::string ErrorOf(const std::string& architecture, const Change& change) {
  return std::string(SpecOf(architecture, change).status().message());
}

TEST(GgufModelTest, EveryArchitectureReadsItsSizes) {
  for (const char* name : kArchitectures) {
    const auto spec = SpecOf(name, [](GgufBuilder*) {});
    ASSERT_TRUE(spec.ok()) << spec.status();
    EXPECT_EQ(spec->hidden, 32) << name;
    EXPECT_EQ(spec->heads, 4) << name;
    EXPECT_EQ(spec->kv_heads, 4) << name;
    EXPECT_EQ(spec->head_dim, 8) << name;
    EXPECT_EQ(spec->norm_epsilon, 1e-5F) << name;
  }
}

TEST(GgufModelTest, RefusesUnknownArchitecturesByName) {
  EXPECT_THAT(ErrorOf("mamba", [](GgufBuilder*) {}),
              HasSubstr("general.architecture is \"mamba\", which is not supported; supported: "
                        "llama, bloom, starcoder, gpt2, qwen2, qwen3, gemma3"));
}

TEST(GgufModelTest, RefusesWhatNoDecoderHereComputesByNameAndValue) {
  for (const std::string name : kArchitectures) {
    EXPECT_EQ(ErrorOf(name, [&](auto* g) { g->Uint32(name + ".expert_count", 8); }),
              "m.gguf: " + name + ".expert_count is 8, but must be from 0 to 0");
    EXPECT_THAT(ErrorOf(name, [&](auto* g) { g->Float32(name + ".logit_scale", 0.5F); }),
                HasSubstr(name + ".logit_scale is 0.5"));
    EXPECT_THAT(
        ErrorOf(name, [&](auto* g) { g->Float32(name + ".attn_logit_softcapping", 50.0F); }),
        HasSubstr(name + ".attn_logit_softcapping is 50"));
    EXPECT_THAT(ErrorOf(name, [&](auto* g) { g->Bool(name + ".attention.causal", false); }),
                HasSubstr(name + ".attention.causal is false"));
  }
}

TEST(GgufModelTest, RefusesBrokenHeads) {
  EXPECT_THAT(ErrorOf("qwen2", [](auto* g) { g->Uint32("qwen2.attention.head_count_kv", 3); }),
              HasSubstr("4 heads, which 3 KV heads do not divide"));
  EXPECT_THAT(ErrorOf("qwen3", [](auto* g) { g->Uint32("qwen3.attention.key_length", 7); }),
              HasSubstr("a head has 7 values"));
  EXPECT_THAT(ErrorOf("gemma3", [](auto* g) { g->Uint32("gemma3.attention.value_length", 4); }),
              HasSubstr("gemma3.attention.value_length is 4"));
}

TEST(GgufModelTest, RefusesRopesItDoesNotKnow) {
  for (const std::string name : {"llama", "qwen2", "qwen3", "gemma3"}) {
    EXPECT_THAT(ErrorOf(name, [&](auto* g) { g->String(name + ".rope.scaling.type", "longrope"); }),
                HasSubstr(name + ".rope.scaling.type is \"longrope\", which is not supported; "
                                 "supported: none, linear, yarn"));
    EXPECT_THAT(
        ErrorOf(name, [&](auto* g) { g->Float32(name + ".rope.scaling.yarn_ext_factor", 0.5F); }),
        HasSubstr(name + ".rope.scaling.yarn_ext_factor is 0.5"));
  }
}

TEST(GgufModelTest, QwenHasNoWindow) {
  EXPECT_THAT(ErrorOf("qwen2", [](auto* g) { g->Uint32("qwen2.attention.sliding_window", 64); }),
              HasSubstr("qwen2.attention.sliding_window is 64"));
}

TEST(GgufModelTest, AFactorWithoutATypeIsLinear) {
  const auto plain = SpecOf("llama", [](GgufBuilder*) {});
  const auto scaled =
      SpecOf("llama", [](auto* g) { g->Float32("llama.rope.scaling.factor", 4.0F); });
  ASSERT_TRUE(plain.ok() && scaled.ok());
  EXPECT_EQ(scaled->rope.inverse_frequency[1], plain->rope.inverse_frequency[1] / 4);
}

TEST(GgufModelTest, EverySixthLayerOfGemmaIsGlobal) {
  const auto spec =
      SpecOf("gemma3", [](auto* g) { g->Uint32("gemma3.attention.sliding_window", 16); });
  ASSERT_TRUE(spec.ok()) << spec.status();
  for (int64_t layer = 0; layer < spec->layers; ++layer) {
    EXPECT_EQ(spec->WindowOf(layer), layer % 6 == 5 ? 0 : 16);
    EXPECT_EQ(spec->UsesLocalRope(layer), layer % 6 != 5);
  }
  EXPECT_FALSE(spec->norm_plus_one);
}

TEST(GgufModelTest, GemmaOf27BScalesByItsHiddenSize) {
  const auto scale = [](uint32_t layers) {
    GgufBuilder gguf;
    gguf.String("general.architecture", "gemma3");
    gguf.Uint32("gemma3.block_count", layers);
    gguf.Uint32("gemma3.context_length", 32);
    gguf.Uint32("gemma3.vocab_size", 32);
    gguf.Uint32("gemma3.embedding_length", 64);
    gguf.Uint32("gemma3.feed_forward_length", 32);
    gguf.Uint32("gemma3.attention.head_count", 4);
    gguf.Uint32("gemma3.attention.key_length", 4);
    gguf.Uint32("gemma3.attention.value_length", 4);
    gguf.Float32("gemma3.attention.layer_norm_rms_epsilon", 1e-5F);
    const std::string bytes = gguf.Build();
    TensorTable table;
    const auto header = AddGguf(
        MakeMemorySource(
            "m.gguf", absl::MakeSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size())),
        &table);
    return (*FindGgufFamily(header->metadata))->spec_from_gguf(header->metadata)->attention_scale;
  };
  EXPECT_EQ(scale(2), 0.5F);
  EXPECT_EQ(scale(62), 0.25F);
}

}  // namespace
}  // namespace pergola
