// The ids and texts of Hugging Face tokenizers (scripts/goldens_tokenizer.py), one tokenizer per
// pre-tokenizer family.
#include <cstdlib>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/sha256.h"
#include "tests/text/text_testing.h"

namespace pergola {
namespace {

using nlohmann::json;

void ExpectGolden(const Tokenizer& tokenizer, const std::string& name) {
  const json texts = json::parse(ReadGolden("texts.json"));
  const json golden = json::parse(ReadGolden(name + ".golden.json"));
  std::string all;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto ids = tokenizer.Encode(texts[i].get<std::string>(), false);
    ASSERT_TRUE(ids.ok()) << ids.status();
    absl::StrAppend(&all, i > 0 ? "\n" : "", absl::StrJoin(*ids, " "));
    if (i >= golden["encode"].size()) continue;
    EXPECT_EQ(*ids, golden["encode"][i].get<std::vector<int32_t>>()) << texts[i];
  }
  if (golden.contains("digest")) {
    Sha256 digest;
    digest.Update(all.data(), all.size());
    EXPECT_EQ(digest.FinishHex(), golden["digest"].get<std::string>());
  } else {
    ASSERT_EQ(golden["encode"].size(), texts.size());
  }
  for (size_t i = 0; i < golden["encode_special"].size(); ++i) {
    const auto ids = tokenizer.Encode(texts[i].get<std::string>(), true);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, golden["encode_special"][i].get<std::vector<int32_t>>()) << texts[i];
  }
  for (const json& decode : golden["decode"]) {
    const auto ids = decode[0].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer.Decode(ids, false), decode[1].get<std::string>()) << decode[0];
    EXPECT_EQ(tokenizer.Decode(ids, true), decode[2].get<std::string>()) << decode[0];
    const auto stream = MakeTextStream(tokenizer, {});
    std::string streamed;
    for (const int32_t id : ids) streamed += stream->Push(id).text;
    EXPECT_EQ(streamed + stream->Flush(), decode[2].get<std::string>()) << decode[0];
  }
}

class TokenizerGoldenTest : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerGoldenTest, EqualsHuggingFace) {
  const std::string name = GetParam();
  const auto tokenizer = TokenizerFromJson(ReadGolden(name + ".tokenizer.json"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  ExpectGolden(**tokenizer, name);
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerGoldenTest,
                         testing::Values("gpt2", "gpt2_prefix_space", "llama3", "qwen2",
                                         "starcoder", "missing_bytes", "unknown", "unknown_fused",
                                         "bloom", "behaviors", "nfd_nfkc", "nfkd", "llama2",
                                         "mistral", "gemma", "some_bytes", "affixes",
                                         "suffix_bytes", "falcon", "accents", "t5", "unigram",
                                         "unigram_bytes"),
                         [](const auto& param) { return std::string(param.param); });

TEST(SmolLm2GoldenTest, EqualsHuggingFaceFromGguf) {
  const char* home = std::getenv("HOME");
  const std::string path =
      std::string(home == nullptr ? "" : home) + "/.cache/pergola/SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "the demo model is not there: " << path;
  const auto parts = LoadTextParts(path);
  ASSERT_TRUE(parts.ok()) << parts.status();
  const auto tokenizer = Tokenizer::Create(*parts);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocabulary_size(), 49152);
  ExpectGolden(**tokenizer, "smollm2");
}

}  // namespace
}  // namespace pergola
