// What a tokenizer.json may not say, and what is refused with which words.
#include "gmock/gmock.h"
#include "tests/text/text_testing.h"

namespace pergola {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

// The refusal's message; fails the test if the file is accepted.
std::string Refusal(const std::string& text) {
  const auto tokenizer = TokenizerFromJson(text);
  EXPECT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tokenizer.status().message());
}

std::string Refusal(const json& document) {
  return Refusal(document.dump());
}

// A file that refers to `document[pointer]` = `value`.
json Edited(const char* pointer, const json& value) {
  json document = SmallTokenizer();
  document[json::json_pointer(pointer)] = value;
  return document;
}

std::vector<int32_t> Ids(const json& document, const std::string& text, bool special = false) {
  const auto tokenizer = TokenizerFromJson(document.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  if (!tokenizer.ok()) return {};
  const auto ids = (*tokenizer)->Encode(text, special);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<int32_t>();
}

TEST(TokenizerJsonTest, AcceptsTheFileThatTheseTestsEdit) {
  EXPECT_THAT(Ids(SmallTokenizer(), "hello abc"), ElementsAre(100, 94, 96));
}

TEST(TokenizerJsonTest, NamesWhatIsNotJson) {
  EXPECT_THAT(Refusal(std::string("{\"model\":")), HasSubstr("tokenizer.json: is not valid JSON"));
  EXPECT_THAT(Refusal(std::string("{\"a\":\"\xFF\"}")), HasSubstr("not valid JSON"));
  EXPECT_THAT(Refusal(std::string("[]")), HasSubstr("the file is an array of 0 elements"));
}

TEST(TokenizerJsonTest, RefusesDeepNestingBeforeParsing) {
  EXPECT_THAT(Refusal(std::string(1 << 20, '[')),
              HasSubstr("tokenizer.json: nested deeper than 64"));
  json nested = {{"type", "ByteLevel"}};
  for (int i = 0; i < 40; ++i) {
    nested = {{"type", "Sequence"}, {"pretokenizers", json::array({nested})}};
  }
  EXPECT_THAT(Refusal(Edited("/pre_tokenizer", nested)), HasSubstr("nested deeper than 64"));
}

TEST(TokenizerJsonTest, CountsTheStepsOfSequencesInSequences) {
  const json step = {{"type", "Digits"}, {"individual_digits", true}};
  json four = {{"type", "Sequence"}, {"pretokenizers", json::array({step, step, step, step})}};
  json all = {{"type", "Sequence"}, {"pretokenizers", json::array({four, four, four, four})}};
  EXPECT_THAT(Refusal(Edited("/pre_tokenizer", all)),
              HasSubstr("pretokenizers[3] is beyond the limit of 16 steps"));
}

TEST(TokenizerJsonTest, RefusesAddedTokensThatTheNormalizerBlowsUp) {
  json document = Edited("/normalizer", {{"type", "Prepend"}, {"prepend", std::string(8000, 'x')}});
  for (int i = 0; i < 300; ++i) {
    document["added_tokens"].push_back(
        {{"id", 200 + i}, {"content", "t" + std::to_string(i)}, {"normalized", true}});
  }
  EXPECT_THAT(Refusal(document), HasSubstr("bytes of added tokens"));
}

// Its table of all ids took 300 MB.
TEST(TokenizerJsonTest, RefusesIdsFarBeyondTheNumberOfTokens) {
  EXPECT_THAT(Refusal(Edited("/model/vocab/hello", 4194303)),
              HasSubstr("ids reach 4194303, but there are only 101 tokens"));
  EXPECT_THAT(Refusal(Edited("/added_tokens/0/id", 4194303)), HasSubstr("ids reach 4194303"));
  EXPECT_EQ(Ids(Edited("/model/vocab/hello", 65000), "hello"), std::vector<int32_t>{65000});
}

TEST(TokenizerJsonTest, NamesAMissingModel) {
  json document = SmallTokenizer();
  document.erase("model");
  EXPECT_THAT(Refusal(document), HasSubstr("model is missing"));
}

TEST(TokenizerJsonTest, NamesFieldsOfTheWrongType) {
  EXPECT_THAT(Refusal(Edited("/model", 3)), HasSubstr("model is 3; it must be an object"));
  EXPECT_THAT(Refusal(Edited("/model/vocab", "x")), HasSubstr("model.vocab is \"x\""));
  EXPECT_THAT(Refusal(Edited("/model/merges", json::object())),
              HasSubstr("model.merges is an object of 0 fields; it must be an array"));
  EXPECT_THAT(Refusal(Edited("/model/merges/1", "a b c")), HasSubstr("model.merges[1] is"));
  EXPECT_THAT(Refusal(Edited("/model/merges/1", json::array({"a"}))), HasSubstr("merges[1] is"));
  EXPECT_THAT(Refusal(Edited("/model/ignore_merges", "yes")),
              HasSubstr("model.ignore_merges is \"yes\"; it must be true or false"));
  EXPECT_THAT(Refusal(Edited("/model/unk_token", 7)), HasSubstr("model.unk_token is 7"));
  EXPECT_THAT(Refusal(Edited("/pre_tokenizer", "ByteLevel")), HasSubstr("pre_tokenizer is"));
  EXPECT_THAT(Refusal(Edited("/pre_tokenizer/use_regex", 1)), HasSubstr("use_regex is 1"));
  EXPECT_THAT(Refusal(Edited("/added_tokens", 1)), HasSubstr("added_tokens is 1"));
  EXPECT_THAT(Refusal(Edited("/added_tokens/0/content", nullptr)),
              HasSubstr("added_tokens[0].content is missing"));
}

TEST(TokenizerJsonTest, RefusesIdsOutOfRange) {
  EXPECT_THAT(Refusal(Edited("/model/vocab/abc", 4194304)),
              HasSubstr("model.vocab[\"abc\"] is 4194304; it must be an id from 0 to 4194303"));
  EXPECT_THAT(Refusal(Edited("/model/vocab/abc", -1)), HasSubstr("is -1"));
  EXPECT_THAT(Refusal(Edited("/model/vocab/abc", 1.5)), HasSubstr("is 1.5"));
  EXPECT_THAT(Refusal(Edited("/model/vocab/abc", 18446744073709551615ULL)),
              HasSubstr("is 18446744073709551615"));
  EXPECT_THAT(Refusal(Edited("/added_tokens/0/id", 2000000000)),
              HasSubstr("added_tokens[0].id is 2000000000"));
}

TEST(TokenizerJsonTest, RefusesAnIdThatTwoTokensClaim) {
  EXPECT_THAT(Refusal(Edited("/model/vocab/abc", 1)), HasSubstr("which another token has too"));
  EXPECT_THAT(Refusal(Edited("/added_tokens/0/id", 5)),
              HasSubstr("added token \"<|end|>\" has id 5, which another token has too"));
  EXPECT_THAT(Refusal(Edited("/added_tokens/0/content", "abc")),
              HasSubstr("added token \"abc\" has id 101, but also id 96"));
}

TEST(TokenizerJsonTest, NamesAMergeOfUnknownTokens) {
  EXPECT_THAT(Refusal(Edited("/model/merges/0", "a zz")),
              HasSubstr("merge 0 (\"a\" \"zz\") needs the token \"zz\""));
  EXPECT_THAT(Refusal(Edited("/model/merges/0", json::array({"b", "a"}))),
              HasSubstr("needs the token \"ba\""));
  EXPECT_THAT(Refusal(Edited("/model/unk_token", "<unk>")),
              HasSubstr("unk_token \"<unk>\" is not in the vocabulary"));
}

TEST(TokenizerJsonTest, RefusesWhatItCannotHonourByName) {
  EXPECT_THAT(Refusal(Edited("/model/type", "WordPiece")),
              HasSubstr("model.type \"WordPiece\" is not supported"));
  EXPECT_THAT(Refusal(Edited("/model/dropout", 0.1)), HasSubstr("model.dropout 0.1"));
  EXPECT_THAT(Refusal(Edited("/normalizer", {{"type", "BertNormalizer"}})),
              HasSubstr("normalizer.type \"BertNormalizer\" is not supported"));
  EXPECT_THAT(Refusal(Edited("/pre_tokenizer", {{"type", "UnicodeScripts"}})),
              HasSubstr("pre_tokenizer.type \"UnicodeScripts\" is not supported"));
  EXPECT_THAT(Refusal(Edited("/decoder", {{"type", "WordPiece"}})),
              HasSubstr("decoder.type \"WordPiece\" is not supported"));
  EXPECT_THAT(Refusal(Edited("/post_processor", {{"type", "PairProcessing"}})),
              HasSubstr("post_processor.type \"PairProcessing\" is not supported"));
}

TEST(TokenizerJsonTest, NamesAKeyThatIsGivenTwice) {
  EXPECT_THAT(Refusal(std::string(R"({"model":{"vocab":{"a":0,"b":1,"a":2},"merges":[]}})")),
              HasSubstr("key \"a\" is given twice"));
}

json WithSplit(const json& pattern, const char* behavior = "Isolated") {
  const json split = {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}};
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  return Edited("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {split, bytes}}});
}

TEST(TokenizerJsonTest, NamesABrokenSplit) {
  EXPECT_THAT(Refusal(WithSplit({{"Regex", "("}})), HasSubstr("pattern \"(\" is broken: end patt"));
  EXPECT_THAT(Refusal(WithSplit({{"Regex", std::string(20000, 'a')}})),
              HasSubstr("pattern has 20000 bytes; the limit is 4096"));
  EXPECT_THAT(Refusal(WithSplit({{"Glob", "*"}})), HasSubstr("pattern.String is missing"));
  EXPECT_THAT(Refusal(WithSplit("x")), HasSubstr("pattern is \"x\"; it must be an object"));
  EXPECT_THAT(Refusal(WithSplit({{"String", "a"}}, "Sideways")), HasSubstr("\"Sideways\""));
}

TEST(TokenizerJsonTest, AnExponentialPatternEndsInAnError) {
  const auto tokenizer = TokenizerFromJson(WithSplit({{"Regex", "(x+x+)+y"}}).dump());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode(std::string(60, 'x') + "zy", false);
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("a text of 62 bytes"));
}

TEST(TokenizerJsonTest, EmptyMatchesSplitWithoutLoopingForever) {
  EXPECT_THAT(Ids(WithSplit({{"Regex", "x*"}}), "abxab"), ElementsAre(64, 65, 87, 64, 65));
  EXPECT_THAT(Ids(WithSplit({{"String", ""}}), "abc"), ElementsAre(96));
}

json WithTemplate(const json& single) {
  const json token = {{"id", "<|end|>"}, {"ids", {101}}, {"tokens", {"<|end|>"}}};
  return Edited("/post_processor", {{"type", "TemplateProcessing"},
                                    {"single", single},
                                    {"special_tokens", {{"<|end|>", token}}}});
}

const json kText = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
const json kEnd = {{"SpecialToken", {{"id", "<|end|>"}, {"type_id", 0}}}};

TEST(TokenizerJsonTest, TemplateAddsTokensOnBothSidesWhenAsked) {
  const json document = WithTemplate({kEnd, kText, kEnd, kEnd});
  EXPECT_THAT(Ids(document, "abc", true), ElementsAre(101, 96, 101, 101));
  EXPECT_THAT(Ids(document, "abc", false), ElementsAre(96));
  EXPECT_THAT(Ids(document, "", true), ElementsAre(101, 101, 101));
}

TEST(TokenizerJsonTest, NamesABrokenTemplate) {
  EXPECT_THAT(Refusal(WithTemplate(json::array({kEnd}))), HasSubstr("has the text 0 times"));
  EXPECT_THAT(Refusal(WithTemplate({kText, kText})), HasSubstr("has the text 2 times"));
  EXPECT_THAT(Refusal(WithTemplate(json::array({1}))), HasSubstr("post_processor.single[0] is 1"));
  EXPECT_THAT(Refusal(WithTemplate({{{"SpecialToken", {{"id", "<s>"}}}}, kText})),
              HasSubstr("\"<s>\" is not in post_processor.special_tokens"));
  json document = WithTemplate({kText, kEnd});
  document["post_processor"]["special_tokens"]["<|end|>"]["ids"] = {102};
  EXPECT_THAT(Refusal(document), HasSubstr("the post-processor adds id 102, which no token has"));
}

TEST(TokenizerJsonTest, AModelWithoutAnyTokenizerIsRefused) {
  const auto tokenizer = Tokenizer::Create(TextParts());
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("no tokenizer"));
}

}  // namespace
}  // namespace pergola
