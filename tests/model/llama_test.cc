#include "model/llama.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "tests/model/test_files.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<ModelSpec> SpecFrom(const std::string& text) {
  ASSIGN_OR_RETURN(const auto json, ParseJsonObject(text, "config.json"));
  const JsonObject config(json, "config.json");
  ASSIGN_OR_RETURN(const Family* family, FindHfFamily(config));
  return family->spec_from_hf(config);
}

std::string ErrorOf(const std::string& text) {
  const auto spec = SpecFrom(text);
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(spec.status().message());
}

std::string With(const std::string& fields) {
  return R"({"model_type":"llama",)" + fields + "}";
}

// The numbers of transformers 5.23: LlamaConfig().to_dict() and MistralConfig().to_dict().
TEST(LlamaTest, UsesTheClassDefaultsForOmittedKeys) {
  const auto llama = SpecFrom(R"({"model_type":"llama"})");
  ASSERT_TRUE(llama.ok()) << llama.status();
  EXPECT_EQ(llama->vocabulary, 32000);
  EXPECT_EQ(llama->hidden, 4096);
  EXPECT_EQ(llama->ffn, 11008);
  EXPECT_EQ(llama->layers, 32);
  EXPECT_EQ(llama->heads, 32);
  EXPECT_EQ(llama->kv_heads, 32);
  EXPECT_EQ(llama->head_dim, 128);
  EXPECT_EQ(llama->context_length, 2048);
  EXPECT_EQ(llama->norm_epsilon, 1e-6F);
  EXPECT_EQ(llama->sliding_window, 0);
  EXPECT_FALSE(llama->tied_embeddings || llama->qkv_bias || llama->mlp_bias);
  EXPECT_EQ(llama->rope.inverse_frequency.size(), 64U);

  const auto mistral = SpecFrom(R"({"model_type":"mistral"})");
  ASSERT_TRUE(mistral.ok()) << mistral.status();
  EXPECT_EQ(mistral->ffn, 14336);
  EXPECT_EQ(mistral->kv_heads, 8);
  EXPECT_EQ(mistral->context_length, 131072);
  EXPECT_EQ(mistral->sliding_window, 4096);
  EXPECT_EQ(mistral->architecture, "llama");
}

TEST(LlamaTest, TellsAnExplicitNullFromAnOmittedKey) {
  const auto spec =
      SpecFrom(R"({"model_type":"mistral","sliding_window":null,"num_key_value_heads":null,)"
               R"("head_dim":null})");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->sliding_window, 0);
  EXPECT_EQ(spec->kv_heads, 32);
  EXPECT_EQ(spec->head_dim, 128);
}

TEST(LlamaTest, TakesHeadDimThatIsNotHiddenOverHeads) {
  const auto spec = SpecFrom(With(R"("hidden_size":48,"num_attention_heads":5,"head_dim":16)"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->head_dim, 16);
  EXPECT_EQ(spec->attention_scale, 0.25F);
  EXPECT_EQ(ShapeOf(*spec, Role::kQuery), (std::vector<int64_t>{80, 48}));
  EXPECT_EQ(ShapeOf(*spec, Role::kAttentionOutput), (std::vector<int64_t>{48, 80}));
}

TEST(LlamaTest, ReadsBiasAndTieFlagsWhereTheClassHasThem) {
  const std::string flags = R"("attention_bias":true,"mlp_bias":true,"tie_word_embeddings":true})";
  const auto llama = SpecFrom(R"({"model_type":"llama",)" + flags);
  ASSERT_TRUE(llama.ok());
  EXPECT_TRUE(llama->qkv_bias && llama->output_bias && llama->mlp_bias && llama->tied_embeddings);
  EXPECT_EQ(LayerRoles(*llama).size(), 16U);
  const auto mistral = SpecFrom(R"({"model_type":"mistral",)" + flags);
  ASSERT_TRUE(mistral.ok());
  EXPECT_FALSE(mistral->qkv_bias || mistral->output_bias || mistral->mlp_bias);
  EXPECT_EQ(LayerRoles(*mistral).size(), 9U);
}

TEST(LlamaTest, RefusesWhatItCannotExecuteByNameAndValue) {
  EXPECT_THAT(ErrorOf(With(R"("hidden_act":"relu")")), HasSubstr("hidden_act is \\\"relu\\\""));
  EXPECT_THAT(ErrorOf(With(R"("quantization_config":{"quant_method":"gptq"})")), HasSubstr("gptq"));
  EXPECT_THAT(ErrorOf(With(R"("rope_scaling":{"type":"longrope","factor":2.0})")),
              HasSubstr("rope type \"longrope\" is not supported; supported: default, linear"));
  EXPECT_THAT(ErrorOf(With(R"("partial_rotary_factor":0.25)")),
              HasSubstr("partial_rotary_factor is 0.25"));
  EXPECT_THAT(ErrorOf(With(R"("rope_parameters":{"partial_rotary_factor":0.5})")),
              HasSubstr("partial_rotary_factor is 0.5"));
  EXPECT_THAT(ErrorOf(R"({"model_type":"t5"})"),
              HasSubstr("model_type is \"t5\", which is not supported; supported: llama, mistral"));
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("model_type is \"\""));
}

TEST(LlamaTest, RefusesZeroNegativeAndAbsurdSizes) {
  for (const char* key :
       {"hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings"}) {
    for (const char* value : {"0", "-1", "9223372036854775807", "1.5", "\"8\"", "[8]"}) {
      EXPECT_THAT(ErrorOf(With(absl::StrCat("\"", key, "\":", value))), HasSubstr(key)) << value;
    }
  }
  for (const char* value : {"-1e-5", "2", "\"x\""}) {
    EXPECT_THAT(ErrorOf(With(absl::StrCat("\"rms_norm_eps\":", value))), HasSubstr("rms_norm_eps"));
  }
  for (const char* value : {"0", "-5", "1e300", "true"}) {
    EXPECT_THAT(ErrorOf(With(absl::StrCat("\"rope_theta\":", value))), HasSubstr("rope_theta"));
  }
}

TEST(LlamaTest, RefusesHeadCountsThatDoNotDivide) {
  EXPECT_THAT(ErrorOf(With(R"("num_attention_heads":9,"num_key_value_heads":2,"head_dim":8)")),
              HasSubstr("9 heads, which 2 KV heads do not divide"));
  EXPECT_THAT(ErrorOf(With(R"("hidden_size":100,"num_attention_heads":3)")),
              HasSubstr("a divisor of hidden_size 100"));
  EXPECT_THAT(ErrorOf(With(R"("head_dim":7)")), HasSubstr("a head has 7 values"));
}

TEST(LlamaGgufTest, RefusesByNameWhatTheMetadataCannotMean) {
  const auto error = [](const std::function<void(testing::GgufBuilder*)>& change) {
    testing::GgufBuilder gguf;
    gguf.String("general.architecture", "llama");
    for (const char* key : {"llama.block_count", "llama.context_length", "llama.vocab_size",
                            "llama.embedding_length", "llama.feed_forward_length"}) {
      gguf.Uint32(key, 32);
    }
    gguf.Float32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
    change(&gguf);
    const std::string bytes = gguf.Build();
    TensorTable table;
    const auto header = AddGguf(
        MakeMemorySource(
            "m", absl::MakeSpan(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size())),
        &table);
    EXPECT_TRUE(header.ok());
    return std::string(kLlamaFamily.spec_from_gguf(header->metadata).status().message());
  };
  const std::string heads = "llama.attention.head_count";
  EXPECT_EQ(error([&](auto* g) { g->Uint32(heads, 4); }), "");
  EXPECT_THAT(error([](auto*) {}), HasSubstr("head_count is missing"));
  EXPECT_THAT(error([&](auto* g) { g->Uint32(heads, 0); }), HasSubstr("head_count is 0"));
  EXPECT_THAT(error([&](auto* g) { g->Int32s(heads, {4, 4}); }), HasSubstr("not an integer"));
  const auto with = [&](const std::function<void(testing::GgufBuilder*)>& more) {
    return error([&](auto* g) {
      g->Uint32(heads, 4);
      more(g);
    });
  };
  EXPECT_THAT(with([](auto* g) { g->Uint32("llama.expert_count", 8); }),
              HasSubstr("llama.expert_count is 8, but must be from 0 to 0"));
  EXPECT_THAT(with([](auto* g) { g->Uint32("llama.rope.dimension_count", 4); }),
              HasSubstr("dimension_count is 4, but must be from 8 to 8"));
  EXPECT_THAT(with([](auto* g) { g->String("llama.rope.scaling.type", "yarn"); }),
              HasSubstr("llama.rope.scaling.type is \"yarn\""));
  EXPECT_THAT(with([](auto* g) { g->Uint32("llama.attention.value_length", 4); }),
              HasSubstr("value_length is 4"));
}

}  // namespace
}  // namespace pergola
