#include "coordinator/text/decoder.h"

#include "coordinator/text/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using Kind = DecoderStep::Kind;
using testing::HasSubstr;
using Strings = std::vector<std::string>;

constexpr char kR[] = "\xEF\xBF\xBD";
constexpr char kSpace[] = "\xE2\x96\x81";

DecoderStep Step(Kind kind, std::string content = "", uint64_t start = 0, uint64_t stop = 0) {
  DecoderStep step;
  step.kind = kind;
  if (kind == Kind::kReplace) step.pattern = Pattern::OfString(content == "" ? "x" : content);
  step.content = std::move(content);
  step.start = start;
  step.stop = stop;
  return step;
}

DecoderStep Replace(std::string from, std::string to) {
  DecoderStep step;
  step.kind = Kind::kReplace;
  step.pattern = Pattern::OfString(std::move(from));
  step.content = std::move(to);
  return step;
}

template <typename... Steps>
absl::StatusOr<Decoder> Make(Steps... steps) {
  std::vector<DecoderStep> list;
  (list.push_back(std::move(steps)), ...);
  return Decoder::Create(std::move(list));
}

// What each token shows, and at the end what is left.
Strings Deltas(const absl::StatusOr<Decoder>& decoder, const Strings& tokens) {
  EXPECT_TRUE(decoder.ok()) << decoder.status();
  if (!decoder.ok()) return {};
  Decoder::Run run(*decoder);
  Strings deltas;
  for (const std::string& token : tokens) {
    run.Push(decoder->Prepared(token), &deltas.emplace_back());
    EXPECT_EQ(FindInvalidUtf8(deltas.back()), -1);
  }
  run.Finish(&deltas.emplace_back());
  return deltas;
}

std::string Text(const absl::StatusOr<Decoder>& decoder, const Strings& tokens) {
  std::string text;
  for (const std::string& delta : Deltas(decoder, tokens)) text += delta;
  return text;
}

absl::StatusOr<Decoder> Llama2() {
  return Make(Replace(kSpace, " "), Step(Kind::kByteFallback), Step(Kind::kFuse),
              Step(Kind::kStrip, " ", 1));
}

TEST(DecoderTest, SentencePieceLosesOnlyItsFirstSpace) {
  const std::string space = kSpace;
  EXPECT_EQ(Deltas(Llama2(), {space + space + "Hello", space + "you"}),
            (Strings{" Hello", " you", ""}));
}

TEST(DecoderTest, ARunOfBytesIsShownWhenItEnds) {
  EXPECT_EQ(Deltas(Llama2(), {"a", "<0xF0>", "<0x9F>", "<0x91>", "<0x8D>", "b"}),
            (Strings{"a", "", "", "", "",
                     "\xF0\x9F\x91\x8D"
                     "b",
                     ""}));
  EXPECT_EQ(Deltas(Llama2(), {"<0xC3>", "<0xA9>"}), (Strings{"", "", "\xC3\xA9"}));
}

TEST(DecoderTest, ARunWithAnInvalidByteIsReplacedByteByByte) {
  EXPECT_EQ(Text(Llama2(), {"<0xC3>", "<0xA9>", "<0xC3>"}), std::string(kR) + kR + kR);
  EXPECT_EQ(Text(Llama2(), {"<0xC3>", "z", "<0xA9>"}), std::string(kR) + "z" + kR);
}

TEST(DecoderTest, WhatOnlyLooksLikeAByteIsText) {
  EXPECT_EQ(Text(Llama2(), {"<0xG3>", "<0xC>", "<0xC3A>", " <0x41>"}), "<0xG3><0xC><0xC3A> <0x41>");
}

TEST(DecoderTest, MetaspaceVanishesFromTheFirstTokenOnly) {
  const std::string space = kSpace;
  EXPECT_EQ(Text(Make(Step(Kind::kMetaspace, kSpace, 1)), {space + "a" + space, space + "b"}),
            "a b");
  EXPECT_EQ(Text(Make(Step(Kind::kMetaspace, kSpace, 0)), {space + "a", space + "b"}), " a b");
  // Joined, all of it is the first token.
  EXPECT_EQ(
      Text(Make(Step(Kind::kFuse), Step(Kind::kMetaspace, kSpace, 1)), {space + "a", space + "b"}),
      "ab");
}

TEST(DecoderTest, StripLooksAtTokensOrAtTheWholeText) {
  EXPECT_EQ(Text(Make(Step(Kind::kStrip, "_", 1, 2)), {"__a___", "_", "b_"}), "_a_b");
  const auto fused = Make(Step(Kind::kFuse), Step(Kind::kStrip, "_", 2, 1));
  EXPECT_EQ(Deltas(fused, {"_", "__a_", "_", "b_", "_"}), (Strings{"", "_a", "_", "_b", "_", ""}));
}

TEST(DecoderTest, ReplaceFindsWhatTokensPartOnlyBehindAJoin) {
  EXPECT_EQ(Text(Make(Replace("ab", "X")), {"a", "b", "ab"}), "abX");
  EXPECT_EQ(Deltas(Make(Step(Kind::kFuse), Replace("aab", "X")), {"a", "a", "a", "b", "aa"}),
            (Strings{"", "", "a", "X", "", "aa"}));
}

TEST(DecoderTest, EndSuffixIsASpaceButNotAtTheEnd) {
  EXPECT_EQ(Text(Make(Step(Kind::kEndSuffix, "</w>")), {"lo", "w</w>", "er</w>"}), "low er");
}

TEST(DecoderTest, SpacesJoinTokensWithoutADecoder) {
  EXPECT_EQ(Text(Make(Step(Kind::kJoinSpaces)), {"a", "", "b"}), "a  b");
}

TEST(DecoderTest, BytesOfATokenAreWhatItStandsForInTheMiddle) {
  const auto decoder = Llama2();
  ASSERT_TRUE(decoder.ok());
  EXPECT_EQ(decoder->BytesOf(decoder->Prepared(std::string(kSpace) + "a")), " a");
  EXPECT_EQ(decoder->BytesOf(decoder->Prepared("<0xE2>")), "\xE2");
}

// Ten such steps made 10 GB of one letter, and ended the process.
TEST(DecoderTest, RefusesStepsThatMakeTextsGrowOutOfProportion) {
  EXPECT_TRUE(Make(Replace("a", "12345678")).ok());
  EXPECT_THAT(std::string(Make(Replace("a", "123456789")).status().message()),
              HasSubstr("step 0 can make a text more than 8 times as long"));
  EXPECT_TRUE(Make(Replace("ab", "1234"), Replace("1", "1234"), Replace("1234", "abcd")).ok());
  EXPECT_THAT(std::string(Make(Replace("a", "1234"), Replace("1", "123")).status().message()),
              HasSubstr("step 1 can make a text"));
}

TEST(DecoderTest, RefusesStepsThatNeedSingleTokensBehindAJoin) {
  for (const Kind kind : {Kind::kByteFallback, Kind::kEndSuffix, Kind::kByteLevel}) {
    const auto decoder = Make(Step(Kind::kFuse), Step(kind, "x"));
    ASSERT_FALSE(decoder.ok());
    EXPECT_THAT(std::string(decoder.status().message()), HasSubstr("step 1 needs single tokens"));
  }
  EXPECT_FALSE(Make(Step(Kind::kFuse), Replace(std::string(257, 'x'), "")).ok());
}

}  // namespace
}  // namespace pergola
