// Text in and out of a small tokenizer: limits, invalid input, GGUF metadata.
#include "gmock/gmock.h"
#include "tests/text/text_testing.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int32_t kEnd = 101;

std::unique_ptr<const Tokenizer> Small() {
  auto tokenizer = TokenizerFromJson(SmallTokenizer().dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

TEST(TokenizerTest, InvalidUtf8IsRefusedWithItsOffset) {
  const auto ids = Small()->Encode("abc\xE2\x82z", false);
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("not valid UTF-8 at byte 3"));
}

TEST(TokenizerTest, SpecialTokensAreRecognisedInText) {
  EXPECT_THAT(*Small()->Encode("abc<|end|>abc<|end", false),
              ElementsAre(96, kEnd, 96, '<' - '!', '|' - '!', 'e' - '!', 'n' - '!', 'd' - '!'));
}

TEST(TokenizerTest, SpecialTokensAreShownOnlyOnRequest) {
  const auto tokenizer = Small();
  EXPECT_EQ(tokenizer->Decode({96, kEnd, 96}, false), "abc<|end|>abc");
  EXPECT_EQ(tokenizer->Decode({96, kEnd, 96}, true), "abcabc");
  EXPECT_EQ(tokenizer->TokenBytes(kEnd, false), "<|end|>");
  EXPECT_EQ(tokenizer->TokenBytes(kEnd, true), "");
}

TEST(TokenizerTest, IdsOutsideTheVocabularyDecodeToNothing) {
  const auto tokenizer = Small();
  EXPECT_EQ(tokenizer->vocabulary_size(), 102);
  EXPECT_EQ(tokenizer->Decode({-1, 102, 96, INT32_MAX, INT32_MIN}, false), "abc");
  EXPECT_EQ(tokenizer->TokenBytes(102, false), "");
}

TEST(TokenizerTest, BytesWithoutATokenVanish) {
  EXPECT_THAT(*Small()->Encode("a\xC3\xA9z", false), ElementsAre('a' - '!', 'z' - '!'));
  EXPECT_THAT(*Small()->Encode("\xF0\x9F\x91\x8D", false), ElementsAre());
}

TEST(TokenizerTest, ATokenBeyondTheModelsRowsIsRefused) {
  TextParts parts;
  parts.tokenizer_json = SmallTokenizer().dump();
  parts.vocabulary_size = 101;
  const auto tokenizer = Tokenizer::Create(parts);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_TRUE((*tokenizer)->Encode("hello abc", false).ok());
  const auto ids = (*tokenizer)->Encode("hello<|end|>", false);
  ASSERT_FALSE(ids.ok());
  EXPECT_THAT(std::string(ids.status().message()),
              HasSubstr("\"<|end|>\" with id 101; the model has 101 ids"));
}

GgufVocabulary SmallGguf() {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "smollm";
  vocabulary.tokens = {"<s>", "a", "b", "ab", "1", "<user>", "<pad>", "<pad>"};
  vocabulary.token_types = {3, 1, 1, 1, 1, 4, 5, 5};
  vocabulary.merges = {"a b"};
  vocabulary.bos_id = 0;
  return vocabulary;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> FromGguf(GgufVocabulary vocabulary) {
  TextParts parts;
  parts.gguf = std::move(vocabulary);
  return Tokenizer::Create(parts);
}

std::string GgufRefusal(GgufVocabulary vocabulary) {
  const auto tokenizer = FromGguf(std::move(vocabulary));
  EXPECT_FALSE(tokenizer.ok());
  return std::string(tokenizer.status().message());
}

TEST(GgufTokenizerTest, TokenTypesDecideWhatIsSpecial) {
  const auto tokenizer = FromGguf(SmallGguf());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("ab11<s><user><pad>", false),
              ElementsAre(3, 4, 4, 0, 5, /*the letter of "<pad>"*/ 1));
  EXPECT_EQ((*tokenizer)->Decode({0, 3, 5}, true), "ab<user>");
}

TEST(GgufTokenizerTest, BosIsAddedAsTheFileOrThePreTokenizerSays) {
  GgufVocabulary vocabulary = SmallGguf();
  EXPECT_THAT(*(*FromGguf(vocabulary))->Encode("ab", true), ElementsAre(3));
  vocabulary.add_bos = true;
  EXPECT_THAT(*(*FromGguf(vocabulary))->Encode("ab", true), ElementsAre(0, 3));
  vocabulary.add_bos = std::nullopt;
  vocabulary.pre = "llama-bpe";
  EXPECT_THAT(*(*FromGguf(vocabulary))->Encode("ab", true), ElementsAre(0, 3));
  vocabulary.add_eos = true;
  vocabulary.eos_id = 5;
  EXPECT_THAT(*(*FromGguf(vocabulary))->Encode("ab", true), ElementsAre(0, 3, 5));
}

TEST(GgufTokenizerTest, RefusesUnknownKindsByName) {
  GgufVocabulary vocabulary = SmallGguf();
  vocabulary.pre = "chatglm-bpe";
  EXPECT_THAT(GgufRefusal(vocabulary),
              HasSubstr("tokenizer.ggml.pre \"chatglm-bpe\" is not supported; known: gpt-2"));
  vocabulary = SmallGguf();
  vocabulary.model = "bert";
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("tokenizer.ggml.model \"bert\""));
}

TEST(GgufTokenizerTest, NamesInconsistentMetadata) {
  GgufVocabulary vocabulary = SmallGguf();
  vocabulary.token_types.pop_back();
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("token_type has 7 entries for 8 tokens"));
  vocabulary = SmallGguf();
  vocabulary.tokens[3] = "\xFF";
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("tokens[3] is not valid UTF-8"));
  vocabulary = SmallGguf();
  vocabulary.merges[0] = "ab";
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("merges[0] is \"ab\""));
  vocabulary = SmallGguf();
  vocabulary.merges[0] = "a 1";
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("needs the token \"a1\""));
  vocabulary = SmallGguf();
  vocabulary.add_bos = true;
  vocabulary.bos_id = 8;
  EXPECT_THAT(GgufRefusal(vocabulary),
              HasSubstr("bos_token_id is 8; it must be an id from 0 to 7"));
  vocabulary.bos_id = std::nullopt;
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("bos_token_id is missing"));
  vocabulary.tokens.clear();
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("tokenizer.ggml.tokens has 0 tokens"));
}

}  // namespace
}  // namespace pergola
