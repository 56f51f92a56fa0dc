#include "coordinator/text/pre_tokenizer.h"

#include "coordinator/text/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

template <typename... Steps>
std::vector<std::string> Words(std::string_view text, bool at_front, Steps... steps) {
  std::vector<SplitStep> list;
  (list.push_back(std::move(steps)), ...);
  const PreTokenizer pre_tokenizer(std::move(list));
  PreTokenizer::Scratch scratch;
  const absl::Status status = pre_tokenizer.Split(text, at_front, &scratch);
  EXPECT_TRUE(status.ok()) << status;
  return {scratch.pieces.begin(), scratch.pieces.end()};
}

SplitStep Metaspace(SplitStep::Prepend prepend, bool split = true) {
  SplitStep step = StepOfKind(SplitStep::Kind::kMetaspace);
  step.content = "_";
  step.prepend = prepend;
  step.split = split;
  return step;
}

SplitStep Regexp(const char* pattern, SplitBehavior behavior) {
  auto step = RegexStep(pattern, behavior, /*invert=*/false);
  EXPECT_TRUE(step.ok()) << step.status();
  return *std::move(step);
}

TEST(PreTokenizerTest, MetaspaceCutsBeforeEachReplacement) {
  EXPECT_THAT(Words("a  b c_d ", true, Metaspace(SplitStep::Prepend::kNever)),
              ElementsAre("a", "_", "_b", "_c", "_d", "_"));
  EXPECT_THAT(Words("a b", true, Metaspace(SplitStep::Prepend::kAlways, /*split=*/false)),
              ElementsAre("_a_b"));
}

TEST(PreTokenizerTest, MetaspacePrependsOnceAndOnlyWhereAsked) {
  EXPECT_THAT(Words(" a", true, Metaspace(SplitStep::Prepend::kAlways)), ElementsAre("_a"));
  EXPECT_THAT(Words("_a", true, Metaspace(SplitStep::Prepend::kAlways)), ElementsAre("_a"));
  EXPECT_THAT(Words("a", true, Metaspace(SplitStep::Prepend::kFirst)), ElementsAre("_a"));
  EXPECT_THAT(Words("a", false, Metaspace(SplitStep::Prepend::kFirst)), ElementsAre("a"));
}

TEST(PreTokenizerTest, OnlyAPieceThatBeginsTheTextIsFirst) {
  const auto words = [](std::string_view text) {
    return Words(text, true, CharactersStep(IsWhitespace, SplitBehavior::kRemoved),
                 Metaspace(SplitStep::Prepend::kFirst));
  };
  EXPECT_THAT(words("a b"), ElementsAre("_a", "b"));
  EXPECT_THAT(words(" a b"), ElementsAre("a", "b"));
}

TEST(PreTokenizerTest, ContiguousMatchesStayTogether) {
  // Runs of single-character matches fell apart once.
  EXPECT_THAT(Words("ab12c3456", true, Regexp("[0-9]", SplitBehavior::kContiguous)),
              ElementsAre("ab", "12", "c", "3456"));
  EXPECT_THAT(Words("a!?.b", true, CharactersStep(IsPunctuation, SplitBehavior::kContiguous)),
              ElementsAre("a", "!?.", "b"));
  EXPECT_THAT(Words("x2024", true, DigitsStep(/*individual=*/false)), ElementsAre("x", "2024"));
}

TEST(PreTokenizerTest, MergedMatchesGoToTheirNeighbour) {
  EXPECT_THAT(Words("a--b-", true, Regexp("-", SplitBehavior::kMergedWithPrevious)),
              ElementsAre("a-", "-", "b-"));
  EXPECT_THAT(Words("-a--b", true, Regexp("-", SplitBehavior::kMergedWithNext)),
              ElementsAre("-a", "-", "-b"));
}

TEST(PreTokenizerTest, BytesAreSpelledOutForStepsBehindByteLevel) {
  EXPECT_THAT(Words(" \xC3\xA9", true, StepOfKind(SplitStep::Kind::kSpellBytes)),
              ElementsAre("\xC4\xA0\xC3\x83\xC2\xA9"));
}

TEST(PreTokenizerTest, AQuadraticPatternEndsInAnError) {
  // At each digit the pattern looks at all digits behind it.
  const auto split = [](size_t digits) {
    std::vector<SplitStep> steps;
    steps.push_back(Regexp("[0-9]{1,3}(?=(?:[0-9]{3})*\\b)|.", SplitBehavior::kIsolated));
    const PreTokenizer pre_tokenizer(std::move(steps));
    PreTokenizer::Scratch scratch;
    scratch.regex.Begin(digits);
    return pre_tokenizer.Split(std::string(digits, '7') + "x", false, &scratch);
  };
  EXPECT_TRUE(split(300).ok());
  const absl::Status status = split(1 << 20);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a text of 1048577 bytes"));
}

}  // namespace
}  // namespace pergola
