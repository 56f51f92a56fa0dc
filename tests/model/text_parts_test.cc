#include "model/text_parts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/model/test_files.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class HfTextTest : public ::testing::Test {
 protected:
  void SetUp() override { Write("config.json", R"({"model_type":"llama","vocab_size":99})"); }
  void Write(const std::string& file, const std::string& text) {
    testing::WriteFile(dir_.File(file), text);
  }
  TextParts Load() {
    const auto parts = LoadTextParts(dir_.path());
    EXPECT_TRUE(parts.ok()) << parts.status();
    return parts.ok() ? *parts : TextParts();
  }
  std::string Error() {
    const auto parts = LoadTextParts(dir_.path());
    EXPECT_FALSE(parts.ok());
    return std::string(parts.status().message());
  }
  testing::TempDir dir_;
};

TEST_F(HfTextTest, LoadsADirectoryThatHoldsOnlyTheConfig) {
  const TextParts parts = Load();
  EXPECT_EQ(parts.vocabulary_size, 99);
  EXPECT_EQ(parts.context_length, 2048);
  EXPECT_EQ(parts.architecture, "llama");
  EXPECT_EQ(dir_.path().substr(dir_.path().rfind('/') + 1), parts.model_name);
  EXPECT_EQ(LoadTextParts(dir_.path() + "//")->model_name, parts.model_name);
  EXPECT_TRUE(parts.tokenizer_json.empty());
  EXPECT_TRUE(parts.chat_template.empty());
  EXPECT_FALSE(parts.gguf.has_value());
  EXPECT_EQ(parts.hash.size(), 64U);
}

TEST_F(HfTextTest, TakesTheClassDefaultsOfOmittedSpecialIds) {
  EXPECT_THAT(Load().defaults.eos_ids, ElementsAre(2));
  EXPECT_EQ(Load().bos_id, 1);
}

TEST_F(HfTextTest, TakesEosOfTheConfigWhenThereIsNoGenerationConfig) {
  Write("config.json", R"({"model_type":"llama","eos_token_id":[7,8],"bos_token_id":null})");
  EXPECT_THAT(Load().defaults.eos_ids, ElementsAre(7, 8));
  EXPECT_FALSE(Load().bos_id.has_value());
}

TEST_F(HfTextTest, LetsGenerationConfigReplaceEos) {
  Write("config.json", R"({"model_type":"llama","eos_token_id":7})");
  Write("generation_config.json", R"({"eos_token_id":[5,6]})");
  EXPECT_THAT(Load().defaults.eos_ids, ElementsAre(5, 6));
  Write("generation_config.json", R"({"eos_token_id":null})");
  EXPECT_THAT(Load().defaults.eos_ids, IsEmpty());
}

TEST_F(HfTextTest, ReadsSamplingDefaultsAndLeavesUnstatedOnesUnset) {
  Write("generation_config.json", R"({"do_sample":true,"temperature":0.6,"top_k":20})");
  const GenerationDefaults defaults = Load().defaults;
  EXPECT_EQ(defaults.do_sample, true);
  EXPECT_EQ(defaults.temperature, 0.6F);
  EXPECT_EQ(defaults.top_k, 20U);
  EXPECT_FALSE(defaults.top_p.has_value());
}

TEST_F(HfTextTest, RefusesBrokenDefaultsByFileKeyAndValue) {
  for (const char* text :
       {R"({"eos_token_id":-1})", R"({"eos_token_id":"2"})", R"({"eos_token_id":[2,4194304]})",
        R"({"eos_token_id":{}})", R"({"temperature":-1})", R"({"top_p":1.5})", R"({"top_k":-3})",
        R"({"do_sample":1})", "[]", "{"}) {
    Write("generation_config.json", text);
    EXPECT_THAT(Error(), HasSubstr("generation_config.json: ")) << text;
  }
  Write("generation_config.json", R"({"eos_token_id":-1})");
  EXPECT_THAT(Error(), HasSubstr("eos_token_id is -1"));
}

TEST_F(HfTextTest, PrefersTheTemplateFileOverTheTokenizerConfig) {
  Write("tokenizer_config.json", R"({"chat_template":"inline"})");
  EXPECT_EQ(Load().chat_template, "inline");
  Write("tokenizer_config.json",
        R"({"chat_template":[{"name":"rag","template":"r"},{"name":"default","template":"d"}]})");
  EXPECT_EQ(Load().chat_template, "d");
  Write("chat_template.json", R"({"chat_template":"of a processor"})");
  EXPECT_EQ(Load().chat_template, "d");
  Write("tokenizer_config.json", "{}");
  EXPECT_EQ(Load().chat_template, "of a processor");
  Write("chat_template.jinja", "file");
  EXPECT_EQ(Load().chat_template, "file");
}

TEST_F(HfTextTest, RefusesABrokenTemplateEntry) {
  Write("tokenizer_config.json", R"({"chat_template":[3]})");
  EXPECT_THAT(Error(), HasSubstr("chat_template"));
  Write("tokenizer_config.json", R"({"chat_template":{"a":1}})");
  EXPECT_THAT(Error(), HasSubstr("chat_template"));
}

TEST_F(HfTextTest, HashSeesEveryFileAndNotTheDirectory) {
  std::set<std::string> hashes = {Load().hash};
  for (const char* file : {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                           "chat_template.jinja"}) {
    Write(file, "{}");
    EXPECT_TRUE(hashes.insert(Load().hash).second) << file;
  }
  Write("config.json", R"({"model_type":"llama","vocab_size":98})");
  EXPECT_TRUE(hashes.insert(Load().hash).second);

  const testing::TempDir other;
  testing::WriteFile(other.File("config.json"), R"({"model_type":"llama","vocab_size":99})");
  EXPECT_EQ(hashes.count(LoadTextParts(other.path())->hash), 1U);
}

TEST_F(HfTextTest, NamesAMissingConfigAndAFileBeyondItsLimit) {
  Write("tokenizer_config.json", std::string((16 << 20) + 1, ' '));
  EXPECT_THAT(Error(), HasSubstr("tokenizer_config.json: has 16777217 bytes; at most 16777216"));
  const testing::TempDir empty;
  EXPECT_THAT(std::string(LoadTextParts(empty.path()).status().message()),
              HasSubstr("config.json: is missing"));
  EXPECT_FALSE(LoadTextParts("/nonexistent").ok());
}

std::string GgufWith(const std::function<void(testing::GgufBuilder*)>& change,
                     const std::vector<std::string>& tokens = {"a", "b", "c"}) {
  testing::GgufBuilder gguf;
  gguf.String("general.architecture", "llama");
  for (const char* key : {"llama.block_count", "llama.context_length", "llama.embedding_length",
                          "llama.feed_forward_length"}) {
    gguf.Uint32(key, 32);
  }
  gguf.Uint32("llama.attention.head_count", 4);
  gguf.Float32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  gguf.Strings("tokenizer.ggml.tokens", tokens);
  change(&gguf);
  return gguf.Build();
}

absl::StatusOr<TextParts> LoadGgufWith(const std::function<void(testing::GgufBuilder*)>& change,
                                       const std::vector<std::string>& tokens = {"a", "b", "c"}) {
  const testing::TempDir dir;
  testing::WriteFile(dir.File("some.gguf"), GgufWith(change, tokens));
  return LoadTextParts(dir.File("some.gguf"));
}

TEST(GgufTextTest, ReadsTheVocabularyFromMetadata) {
  const auto parts = LoadGgufWith([](auto* g) {
    g->String("tokenizer.ggml.model", "gpt2");
    g->String("tokenizer.ggml.pre", "smollm");
    g->Int32s("tokenizer.ggml.token_type", {1, 3, 6});
    g->Strings("tokenizer.ggml.merges", {"a b"});
    g->Uint32("tokenizer.ggml.bos_token_id", 1);
    g->Uint32("tokenizer.ggml.eos_token_id", 2);
    g->Uint32("tokenizer.ggml.eot_token_id", 0);
    g->Uint32("tokenizer.ggml.padding_token_id", 0xffffffffU);
    g->Bool("tokenizer.ggml.add_bos_token", false);
    g->String("tokenizer.chat_template", "{{ x }}");
  });
  ASSERT_TRUE(parts.ok()) << parts.status();
  EXPECT_EQ(parts->model_name, "some.gguf");
  EXPECT_EQ(parts->vocabulary_size, 3);
  EXPECT_EQ(parts->chat_template, "{{ x }}");
  EXPECT_THAT(parts->defaults.eos_ids, ElementsAre(2, 0));
  EXPECT_EQ(parts->bos_id, 1);
  ASSERT_TRUE(parts->gguf.has_value());
  EXPECT_EQ(parts->gguf->model, "gpt2");
  EXPECT_EQ(parts->gguf->pre, "smollm");
  EXPECT_THAT(parts->gguf->tokens, ElementsAre("a", "b", "c"));
  EXPECT_THAT(parts->gguf->token_types, ElementsAre(1, 3, 6));
  EXPECT_THAT(parts->gguf->merges, ElementsAre("a b"));
  EXPECT_EQ(parts->gguf->add_bos, false);
  EXPECT_FALSE(parts->gguf->add_eos.has_value());
  EXPECT_FALSE(parts->gguf->padding_id.has_value());
}

TEST(GgufTextTest, FindsTheEndOfATurnByItsNameWhereNoKeySaysIt) {
  const auto ends = [](bool with_key, bool with_template) {
    const auto change = [&](auto* g) {
      g->Int32s("tokenizer.ggml.token_type", {1, 3, 1, 3});
      g->Uint32("tokenizer.ggml.eos_token_id", 3);
      if (with_key) g->Uint32("tokenizer.ggml.eot_token_id", 0);
      if (with_template) g->String("tokenizer.chat_template", "x");
    };
    const auto parts = LoadGgufWith(change, {"a", "<end_of_turn>", "<|im_end|>", "</s>"});
    EXPECT_TRUE(parts.ok()) << parts.status();
    return parts->defaults.eos_ids;
  };
  EXPECT_THAT(ends(false, true), ElementsAre(3, 1)) << "the normal token is none";
  EXPECT_THAT(ends(true, true), ElementsAre(3, 0));
  EXPECT_THAT(ends(false, false), ElementsAre(3));
}

TEST(GgufTextTest, RefusesATypeListOfAnotherLengthAndAbsurdIds) {
  EXPECT_THAT(std::string(LoadGgufWith([](auto* g) {
                            g->Int32s("tokenizer.ggml.token_type", {1, 3});
                          })
                              .status()
                              .message()),
              HasSubstr("holds 2 types for 3 tokens"));
  EXPECT_THAT(
      std::string(LoadGgufWith([](auto* g) { g->Uint32("tokenizer.ggml.eos_token_id", 1U << 30); })
                      .status()
                      .message()),
      HasSubstr("eos_token_id is 1073741824"));
}

TEST(GgufTextTest, HashSeesMetadataAndNotWeights) {
  const auto plain = LoadGgufWith([](auto*) {});
  const auto template_added =
      LoadGgufWith([](auto* g) { g->String("tokenizer.chat_template", "x"); });
  const auto tensor_added = LoadGgufWith([](auto* g) { g->Tensor("t", 0, {1}, "abcd"); });
  ASSERT_TRUE(plain.ok() && template_added.ok() && tensor_added.ok());
  EXPECT_NE(plain->hash, template_added->hash);
  EXPECT_EQ(plain->hash, tensor_added->hash);
}

}  // namespace
}  // namespace pergola
