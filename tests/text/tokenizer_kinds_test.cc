// SentencePiece's and unigram tokenizers from tokenizer.json and from GGUF metadata: what they do
// with characters they do not know, and what they refuse.
#include <limits>

#include "gmock/gmock.h"
#include "tests/text/text_testing.h"

namespace pergola {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kSpace[] = "\xE2\x96\x81";

json CharacterBpe() {
  json vocabulary = {{"<unk>", 0},  {"a", 1},      {"b", 2},  {"ab", 3},
                     {"<0xC3>", 4}, {"<0xA9>", 5}, {"aba", 6}};
  json model = {{"type", "BPE"},
                {"vocab", vocabulary},
                {"merges", {"a b", "ab a"}},
                {"unk_token", "<unk>"},
                {"byte_fallback", true}};
  return {{"model", model}};
}

std::vector<int32_t> Ids(const json& document, const std::string& text) {
  const auto tokenizer = TokenizerFromJson(document.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  if (!tokenizer.ok()) return {};
  const auto ids = (*tokenizer)->Encode(text, false);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : std::vector<int32_t>();
}

std::string Refusal(const json& document) {
  const auto tokenizer = TokenizerFromJson(document.dump());
  EXPECT_FALSE(tokenizer.ok());
  return std::string(tokenizer.status().message());
}

json With(json document, const char* pointer, const json& value) {
  document[json::json_pointer(pointer)] = value;
  return document;
}

TEST(CharacterBpeTest, AnUnknownCharacterBecomesItsBytesOrTheUnknownToken) {
  EXPECT_THAT(Ids(CharacterBpe(), "aba\xC3\xA9z"), ElementsAre(6, 4, 5, 0));
  // Bytes come before an unknown token that is still owed, as in Hugging Face tokenizers.
  EXPECT_THAT(Ids(CharacterBpe(),
                  "z\xC3\xA9"
                  "a"),
              ElementsAre(4, 5, 0, 1));
}

TEST(CharacterBpeTest, UnknownTokensFuseOnlyWhenAsked) {
  EXPECT_THAT(Ids(CharacterBpe(), "zza"), ElementsAre(0, 0, 1));
  EXPECT_THAT(Ids(With(CharacterBpe(), "/model/fuse_unk", true), "zza"), ElementsAre(0, 1));
}

TEST(CharacterBpeTest, NeighboursOfWhatVanishesMerge) {
  json document = CharacterBpe();
  document["model"].erase("unk_token");
  EXPECT_THAT(Ids(document, "azb"), ElementsAre(3));
  EXPECT_THAT(Ids(document, "zazzbza"), ElementsAre(6));
}

TEST(CharacterBpeTest, AffixesMarkWhereASymbolStands) {
  json document = CharacterBpe();
  document["model"]["continuing_subword_prefix"] = "##";
  document["model"]["end_of_word_suffix"] = "</w>";
  document["model"]["vocab"] = {{"<unk>", 0}, {"a", 1}, {"##b", 2}, {"##b</w>", 3}, {"ab</w>", 4}};
  document["model"]["merges"] = {"a ##b</w>"};
  EXPECT_THAT(Ids(document, "ab"), ElementsAre(4));
  EXPECT_THAT(Ids(document, "abb"), ElementsAre(1, 2, 3));
  EXPECT_THAT(Ids(document, "b"), ElementsAre(0));
}

TEST(UnigramJsonTest, NamesABrokenVocabulary) {
  json unigram = {{"model", {{"type", "Unigram"}, {"unk_id", 0}}}};
  unigram["model"]["vocab"] = json::array({json::array({"<unk>", 0.0})});
  EXPECT_THAT(Ids(unigram, "x"), ElementsAre(0));
  EXPECT_THAT(Refusal(With(unigram, "/model/vocab/0", json::array({"a"}))),
              HasSubstr("model.vocab[0] is an array of 1 elements"));
  EXPECT_THAT(Refusal(With(unigram, "/model/vocab/0/1", "low")), HasSubstr("model.vocab[0]"));
  EXPECT_THAT(Refusal(With(unigram, "/model/vocab", 1)), HasSubstr("must be an array"));
  EXPECT_THAT(Refusal(With(unigram, "/model/unk_id", 1)), HasSubstr("unk_id is 1"));
}

TEST(TokenizerStepsTest, NameWhatIsBroken) {
  const json base = CharacterBpe();
  const auto normalizer = [&](json step) { return Refusal(With(base, "/normalizer", step)); };
  EXPECT_THAT(normalizer({{"type", "Prepend"}}), HasSubstr("normalizer.prepend is missing"));
  EXPECT_THAT(normalizer({{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", "x"}}),
              HasSubstr("normalizer.pattern.String \"\" is not supported"));
  EXPECT_THAT(normalizer({{"type", "Replace"}, {"pattern", {{"Regex", "["}}}, {"content", "x"}}),
              HasSubstr("is broken"));
  EXPECT_THAT(normalizer({{"type", "Precompiled"}, {"precompiled_charsmap", "%"}}),
              HasSubstr("must be base64"));
  EXPECT_THAT(normalizer({{"type", "Precompiled"}, {"precompiled_charsmap", "AAAA"}}),
              HasSubstr("charsmap of 3 bytes"));
  const auto splitter = [&](json step) { return Refusal(With(base, "/pre_tokenizer", step)); };
  EXPECT_THAT(splitter({{"type", "Metaspace"}}), HasSubstr("replacement is missing"));
  EXPECT_THAT(splitter({{"type", "Metaspace"}, {"replacement", "ab"}}),
              HasSubstr("must be one character"));
  EXPECT_THAT(splitter({{"type", "Metaspace"}, {"replacement", "a"}, {"prepend_scheme", "last"}}),
              HasSubstr("prepend_scheme \"last\" is not supported"));
  EXPECT_THAT(splitter({{"type", "Metaspace"}, {"replacement", "a"}, {"add_prefix_space", false}}),
              HasSubstr("add_prefix_space false"));
  const auto decoder = [&](json step) { return Refusal(With(base, "/decoder", step)); };
  EXPECT_THAT(decoder({{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}}),
              HasSubstr("decoder.start is -1; it must be a count"));
  const json fuse = {{"type", "Fuse"}};
  const json fallback = {{"type", "ByteFallback"}};
  EXPECT_THAT(decoder({{"type", "Sequence"}, {"decoders", {fuse, fallback}}}),
              HasSubstr("decoder: step 1 needs single tokens"));
}

TEST(TokenizerStepsTest, FirstAfterPrependIsRefused) {
  json document = CharacterBpe();
  document["normalizer"] = {{"type", "Prepend"}, {"prepend", "> "}};
  const json metaspace = {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "first"}};
  document["pre_tokenizer"] = {{"type", "Sequence"},
                               {"pretokenizers", {{{"type", "Whitespace"}}, metaspace}}};
  EXPECT_THAT(Refusal(document), HasSubstr("is not supported with the normalizer Prepend"));
}

GgufVocabulary Llama() {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "<s>",    "a",      "b",    "aa",
                       "ab",    "<0xC3>", "<0xA9>", kSpace, std::string(kSpace) + "a"};
  vocabulary.token_types = {2, 3, 1, 1, 1, 1, 6, 6, 1, 1};
  vocabulary.scores = {0, 0, -9, -9, -1, -1, 0, 0, -9, -2};
  vocabulary.unknown_id = 0;
  vocabulary.bos_id = 1;
  vocabulary.add_space_prefix = false;
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

TEST(GgufSentencePieceTest, OfEqualScoresTheLeftmostPairMergesFirst) {
  const auto tokenizer = FromGguf(Llama());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("aab", false), ElementsAre(4, 3));
  GgufVocabulary better = Llama();
  better.scores[5] = -0.5F;  // "ab" before "aa"
  EXPECT_THAT(*(*FromGguf(better))->Encode("aab", false), ElementsAre(2, 5));
}

TEST(GgufSentencePieceTest, SpacesBytesAndTheBeginningComeBack) {
  GgufVocabulary vocabulary = Llama();
  vocabulary.add_space_prefix = std::nullopt;  // means yes
  const auto tokenizer = FromGguf(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto ids = (*tokenizer)->Encode("a\xC3\xA9 a<s>b", true);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_THAT(*ids, ElementsAre(1, 9, 6, 7, 9, 1, 8, 3));
  EXPECT_EQ((*tokenizer)->Decode(*ids, true), "a\xC3\xA9 a b");
}

TEST(GgufSentencePieceTest, NamesScoresThatDoNotFit) {
  GgufVocabulary vocabulary = Llama();
  vocabulary.scores.pop_back();
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("scores has 9 entries for 10 tokens"));
  vocabulary = Llama();
  vocabulary.scores[3] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("scores[3] is inf"));
  vocabulary.model = "t5";
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("scores[3] is inf"));
  vocabulary = Llama();
  vocabulary.tokens[2] = std::string(1025, 'a');
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("tokens[2] has 1025 bytes; the limit is 1024"));
}

// Each of its tokens can be parted everywhere: 512 KiB of them made 350 MB of merges.
TEST(GgufSentencePieceTest, RefusesAVocabularyWithFarMoreMergesThanTokens) {
  GgufVocabulary vocabulary;
  vocabulary.model = "llama";
  for (size_t length = 1; length <= 1000; ++length) {
    vocabulary.tokens.push_back(std::string(length, 'a'));
    vocabulary.scores.push_back(-static_cast<float>(length));
  }
  vocabulary.add_bos = false;
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("which take more than 32 times the bytes"));
}

TEST(GgufSentencePieceTest, RefusesAControlTokenThatIsTooLongToLookForEverywhere) {
  GgufVocabulary vocabulary;
  vocabulary.model = "gpt2";
  vocabulary.pre = "gpt-2";
  vocabulary.tokens = {"a", std::string(100000, 'a')};
  EXPECT_TRUE(FromGguf(vocabulary).ok()) << "a word may be long";
  vocabulary.token_types = {1, 3};
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("tokens[1] has 100000 bytes"));
}

TEST(GgufSentencePieceTest, Gemma4HasMergesAndNoPrefix) {
  GgufVocabulary vocabulary = Llama();
  vocabulary.model = "gemma4";
  vocabulary.add_space_prefix = std::nullopt;
  vocabulary.merges = {"a b", std::string(kSpace) + " a"};
  const auto tokenizer = FromGguf(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("aab a", false), ElementsAre(2, 5, 9));
  vocabulary.merges = {"a"};
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("merges[0] is \"a\""));
}

TEST(GgufUnigramTest, WordsBeginWithTheReplacement) {
  GgufVocabulary vocabulary = Llama();
  vocabulary.model = "t5";
  vocabulary.add_space_prefix = std::nullopt;
  vocabulary.remove_extra_spaces = true;
  vocabulary.eos_id = 1;
  const auto tokenizer = FromGguf(vocabulary);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(*(*tokenizer)->Encode("  aab   b ", true), ElementsAre(9, 5, 8, 3, 1));
  EXPECT_EQ((*tokenizer)->Decode({9, 5, 8, 3, 1}, true), "aab b");
  vocabulary.charsmap = "abc";
  EXPECT_THAT(GgufRefusal(vocabulary), HasSubstr("precompiled_charsmap: the charsmap of 3 bytes"));
}

}  // namespace
}  // namespace pergola
