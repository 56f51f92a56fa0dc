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

TEST(Qwen2Test, UsesTheClassDefaults) {
  const ModelSpec spec = Spec("qwen2");
  EXPECT_EQ(spec.vocabulary, 151936);
  EXPECT_EQ(spec.ffn, 22016);
  EXPECT_EQ(spec.kv_heads, 32);
  EXPECT_EQ(spec.head_dim, 128);
  EXPECT_EQ(spec.context_length, 32768);
  EXPECT_EQ(spec.sliding_window, 0);
  EXPECT_TRUE(spec.qkv_bias && !spec.output_bias && !spec.head_norms && !spec.tied_embeddings);
}

TEST(Qwen2Test, ItsWindowCountsOnlyWhereItIsUsedAndFromAStatedLayerOn) {
  const std::string fields = R"("num_hidden_layers":4,"max_window_layers":2,"sliding_window":64)";
  const ModelSpec unused = Spec("qwen2", fields);
  for (int64_t layer = 0; layer < 4; ++layer) EXPECT_EQ(unused.WindowOf(layer), 0);
  const ModelSpec used = Spec("qwen2", fields + R"(,"use_sliding_window":true)");
  EXPECT_EQ(used.WindowOf(1), 0);
  EXPECT_EQ(used.WindowOf(2), 64);
  EXPECT_EQ(used.WindowOf(3), 64);
  const ModelSpec listed = Spec("qwen2", R"("num_hidden_layers":2,"use_sliding_window":true,)"
                                         R"("layer_types":["sliding_attention","full_attention"])");
  EXPECT_EQ(listed.WindowOf(0), 4096);
  EXPECT_EQ(listed.WindowOf(1), 0);
}

TEST(Qwen2Test, RefusesByNameAndValue) {
  EXPECT_THAT(ErrorOf("qwen2", R"("num_hidden_layers":2,"layer_types":["full_attention"])"),
              HasSubstr("layer_types is [\\\"full_attention\\\"], but must be an array of 2"));
  EXPECT_THAT(ErrorOf("qwen2", R"("num_hidden_layers":1,"layer_types":["linear_attention"])"),
              HasSubstr("linear_attention"));
  EXPECT_THAT(ErrorOf("qwen2", R"("num_hidden_layers":1,"layer_types":["sliding_attention"])"),
              HasSubstr("there is no sliding_window"));
  EXPECT_THAT(ErrorOf("qwen2", R"("max_window_layers":-1)"), HasSubstr("max_window_layers is -1"));
}

TEST(Qwen3Test, HasHeadNormsAndAHeadDimOfItsOwn) {
  const ModelSpec spec =
      Spec("qwen3", R"("hidden_size":1024,"num_attention_heads":16,"num_key_value_heads":8)");
  EXPECT_EQ(spec.head_dim, 128);
  EXPECT_TRUE(spec.head_norms && !spec.qkv_bias);
  EXPECT_TRUE(Spec("qwen3", R"("attention_bias":true)").output_bias);
}

TEST(Gemma3Test, UsesTheClassDefaults) {
  const ModelSpec spec = Spec("gemma3_text");
  EXPECT_EQ(spec.vocabulary, 262208);
  EXPECT_EQ(spec.hidden, 2304);
  EXPECT_EQ(spec.layers, 26);
  EXPECT_EQ(spec.heads, 8);
  EXPECT_EQ(spec.kv_heads, 4);
  EXPECT_EQ(spec.head_dim, 256);
  EXPECT_EQ(spec.activation, Activation::kGeluTanh);
  EXPECT_EQ(spec.attention_scale, 1.0F / 16);
  EXPECT_EQ(spec.embedding_scale, 48.0F);
  EXPECT_EQ(spec.logit_cap, 0.0F);
  EXPECT_TRUE(spec.tied_embeddings && spec.norm_plus_one && spec.post_norms && spec.head_norms);
  // Every sixth layer sees all.
  EXPECT_EQ(spec.WindowOf(4), 4096);
  EXPECT_EQ(spec.WindowOf(5), 0);
  EXPECT_TRUE(spec.UsesLocalRope(4));
  EXPECT_FALSE(spec.UsesLocalRope(5));
}

TEST(Gemma3Test, OldAndNewRopeKeysMeanTheSame) {
  const ModelSpec old_keys =
      Spec("gemma3_text", R"("rope_theta":500000,"rope_local_base_freq":20000,)"
                          R"("rope_scaling":{"rope_type":"linear","factor":8})");
  const ModelSpec new_keys =
      Spec("gemma3_text", R"("rope_parameters":{"full_attention":{"rope_type":"linear","factor":8,)"
                          R"("rope_theta":500000},"sliding_attention":{"rope_theta":20000}})");
  EXPECT_EQ(old_keys.rope.inverse_frequency, new_keys.rope.inverse_frequency);
  EXPECT_EQ(old_keys.local_rope.inverse_frequency, new_keys.local_rope.inverse_frequency);
  EXPECT_EQ(old_keys.rope.inverse_frequency[0], 0.125F);
  EXPECT_EQ(old_keys.local_rope.inverse_frequency[0], 1.0F);
  EXPECT_NE(old_keys.rope.inverse_frequency[1] * 8, old_keys.local_rope.inverse_frequency[1]);
}

TEST(Gemma3Test, RefusesByNameAndValue) {
  EXPECT_THAT(ErrorOf("gemma3_text", R"("use_bidirectional_attention":true)"),
              HasSubstr("use_bidirectional_attention is true"));
  EXPECT_THAT(ErrorOf("gemma3_text", R"("sliding_window":null)"), HasSubstr("sliding_window"));
  EXPECT_THAT(ErrorOf("gemma3_text", R"("rope_parameters":{"rope_theta":10000})"),
              HasSubstr("by kind of layer"));
  EXPECT_THAT(ErrorOf("gemma3_text", R"("query_pre_attn_scalar":0)"),
              HasSubstr("query_pre_attn_scalar is 0"));
  EXPECT_THAT(ErrorOf("gemma3_text", R"("final_logit_softcapping":-30)"),
              HasSubstr("final_logit_softcapping is -30"));
  EXPECT_THAT(ErrorOf("gemma3_text", R"("hidden_activation":"relu2")"), HasSubstr("relu2"));
}

TEST(FamilyTest, NamesEveryFamilyInTheMessage) {
  EXPECT_THAT(ErrorOf("t5", ""), HasSubstr("llama, mistral, bloom, gpt_bigcode, gpt2, qwen2, "
                                           "qwen3, gemma3_text"));
}

}  // namespace
}  // namespace pergola
