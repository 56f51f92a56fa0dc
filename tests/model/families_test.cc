// What each family makes of config.json: class defaults, other names of keys, and what is refused
// by name and value.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/bloom.h"
#include "model/family.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<ModelSpec> SpecFrom(const std::string& type, const std::string& fields) {
  const std::string comma = fields.empty() ? "" : ",";
  const std::string text = absl::StrCat("{\"model_type\":\"", type, "\"", comma, fields, "}");
  ASSIGN_OR_RETURN(const auto json, ParseJsonObject(text, "config.json"));
  const JsonObject config(json, "config.json");
  ASSIGN_OR_RETURN(const Family* family, FindHfFamily(config));
  return family->spec_from_hf(config);
}

ModelSpec Spec(const std::string& type, const std::string& fields = "") {
  auto spec = SpecFrom(type, fields);
  EXPECT_TRUE(spec.ok()) << spec.status();
  return spec.ok() ? *std::move(spec) : ModelSpec();
}

std::string ErrorOf(const std::string& type, const std::string& fields) {
  const auto spec = SpecFrom(type, fields);
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument) << fields;
  return std::string(spec.status().message());
}

// transformers 5.23: _get_alibi_slopes(n) of modeling_bloom.py.
TEST(AlibiTest, SlopesOfAPowerOfTwoAreOneSeries) {
  EXPECT_EQ(AlibiSlopes(1), (std::vector<float>{0.00390625F}));
  EXPECT_EQ(AlibiSlopes(4), (std::vector<float>{0.25F, 0.0625F, 0.015625F, 0.00390625F}));
}

TEST(AlibiTest, SlopesOfOtherCountsTakeEveryOtherOfTheNextSeries) {
  const std::vector<float> twelve = AlibiSlopes(12);
  ASSERT_EQ(twelve.size(), 12U);
  EXPECT_EQ(twelve[0], 0.5F);
  EXPECT_EQ(twelve[7], 0.00390625F);
  EXPECT_FLOAT_EQ(twelve[8], 0.70710678F);
  EXPECT_FLOAT_EQ(twelve[9], 0.35355338F);
  EXPECT_FLOAT_EQ(twelve[11], 0.088388346F);
}

TEST(BloomTest, UsesTheClassDefaults) {
  const ModelSpec spec = Spec("bloom");
  EXPECT_EQ(spec.vocabulary, 250880);
  EXPECT_EQ(spec.hidden, 64);
  EXPECT_EQ(spec.layers, 2);
  EXPECT_EQ(spec.heads, 8);
  EXPECT_EQ(spec.kv_heads, 8);
  EXPECT_EQ(spec.ffn, 256);
  EXPECT_EQ(spec.context_length, 2048);
  EXPECT_EQ(spec.norm_epsilon, 1e-5F);
  EXPECT_EQ(spec.alibi_slopes.size(), 8U);
  EXPECT_EQ(spec.rope.dims, 0);
  EXPECT_TRUE(spec.embedding_norm && spec.tied_embeddings && !spec.residual_after_norm);
}

// bigscience/bloom's own config.json.
TEST(BloomTest, ReadsTheOldNamesOfKeys) {
  const ModelSpec spec =
      Spec("bloom", R"("n_embed":14336,"n_layer":70,"num_attention_heads":112,"n_inner":null,)"
                    R"("seq_length":2048,"pretraining_tp":4,"offset_alibi":100)");
  EXPECT_EQ(spec.hidden, 14336);
  EXPECT_EQ(spec.layers, 70);
  EXPECT_EQ(spec.heads, 112);
  EXPECT_EQ(spec.head_dim, 128);
}

TEST(BloomTest, RefusesByNameAndValue) {
  EXPECT_THAT(ErrorOf("bloom", R"("n_head":8,"num_attention_heads":16)"),
              HasSubstr("num_attention_heads is 16, but must be equal to n_head"));
  EXPECT_THAT(ErrorOf("bloom", R"("hidden_size":100,"n_head":3)"),
              HasSubstr("n_head is 3, but must be a divisor of hidden_size 100"));
  EXPECT_THAT(ErrorOf("bloom", R"("hidden_size":4096,"n_head":4)"),
              HasSubstr("the model has 1024 values per head, but must have 1 to 512"));
  EXPECT_THAT(ErrorOf("bloom", R"("layer_norm_epsilon":-1)"), HasSubstr("layer_norm_epsilon"));
  EXPECT_THAT(ErrorOf("bloom", R"("apply_residual_connection_post_layernorm":1)"),
              HasSubstr("apply_residual_connection_post_layernorm is 1"));
  EXPECT_THAT(ErrorOf("bloom", R"("quantization_config":{"quant_method":"awq"})"),
              HasSubstr("awq"));
  for (const char* key :
       {"hidden_size", "n_embed", "n_layer", "n_head", "vocab_size", "seq_length"}) {
    for (const char* value : {"0", "-1", "9223372036854775807", "1.5", "\"8\"", "[8]"}) {
      EXPECT_THAT(ErrorOf("bloom", absl::StrCat("\"", key, "\":", value)), HasSubstr(key));
    }
  }
}

TEST(GptBigCodeTest, UsesTheClassDefaults) {
  const ModelSpec spec = Spec("gpt_bigcode");
  EXPECT_EQ(spec.vocabulary, 50257);
  EXPECT_EQ(spec.hidden, 768);
  EXPECT_EQ(spec.layers, 12);
  EXPECT_EQ(spec.heads, 12);
  EXPECT_EQ(spec.kv_heads, 1);
  EXPECT_EQ(spec.ffn, 3072);
  EXPECT_EQ(spec.context_length, 1024);
  EXPECT_EQ(spec.activation, Activation::kGeluTanh);
  EXPECT_EQ(spec.attention_scale, 0.125F);
  EXPECT_TRUE(spec.learned_positions && spec.tied_embeddings);
}

TEST(GptBigCodeTest, ReadsItsOptions) {
  const ModelSpec spec =
      Spec("gpt_bigcode", R"("multi_query":false,"scale_attn_weights":false,"n_inner":100,)"
                          R"("activation_function":"gelu","attention_softmax_in_fp32":false)");
  EXPECT_EQ(spec.kv_heads, 12);
  EXPECT_EQ(spec.attention_scale, 1.0F);
  EXPECT_EQ(spec.ffn, 100);
  EXPECT_EQ(spec.activation, Activation::kGeluErf);
}

TEST(GptBigCodeTest, RefusesByNameAndValue) {
  EXPECT_THAT(ErrorOf("gpt_bigcode", R"("add_cross_attention":true)"),
              HasSubstr("add_cross_attention is true"));
  EXPECT_THAT(ErrorOf("gpt_bigcode", R"("activation_function":"relu")"),
              HasSubstr("activation_function is \\\"relu\\\", but must be silu, swish, gelu"));
  EXPECT_THAT(ErrorOf("gpt_bigcode", R"("multi_query":2)"), HasSubstr("multi_query is 2"));
  EXPECT_THAT(ErrorOf("gpt_bigcode", R"("attention_softmax_in_fp32":"yes")"),
              HasSubstr("attention_softmax_in_fp32"));
}

TEST(Gpt2Test, ReadsItsOptions) {
  const ModelSpec plain = Spec("gpt2");
  EXPECT_EQ(plain.kv_heads, 12);
  EXPECT_EQ(plain.ScaleOf(3), 0.125F);
  const ModelSpec spec =
      Spec("gpt2", R"("scale_attn_by_inverse_layer_idx":true,"reorder_and_upcast_attn":true)");
  EXPECT_EQ(spec.ScaleOf(0), 0.125F);
  EXPECT_EQ(spec.ScaleOf(3), 0.125F / 4);
}

TEST(Gpt2Test, RefusesByNameAndValue) {
  EXPECT_THAT(ErrorOf("gpt2", R"("add_cross_attention":true)"), HasSubstr("add_cross_attention"));
  EXPECT_THAT(ErrorOf("gpt2", R"("n_positions":1024,"max_position_embeddings":2048)"),
              HasSubstr("max_position_embeddings is 2048, but must be equal to n_positions"));
  EXPECT_THAT(ErrorOf("gpt2", R"("n_embd":770)"), HasSubstr("a divisor of n_embd 770"));
  EXPECT_THAT(ErrorOf("gpt2", R"("reorder_and_upcast_attn":3)"),
              HasSubstr("reorder_and_upcast_attn is 3"));
}

TEST(FamilyTest, NamesEveryFamilyInTheMessage) {
  EXPECT_THAT(ErrorOf("t5", ""), HasSubstr("llama, mistral, bloom, gpt_bigcode, gpt2"));
}

}  // namespace
}  // namespace pergola
