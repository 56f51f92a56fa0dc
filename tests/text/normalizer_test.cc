#include "coordinator/text/normalizer.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using Kind = NormalizerStep::Kind;
using testing::HasSubstr;

struct Outcome {
  std::string text;
  bool front_lost = false;
};

Outcome Apply(NormalizerStep step, std::string_view text) {
  std::vector<NormalizerStep> steps;
  steps.push_back(std::move(step));
  const Normalizer normalizer(std::move(steps));
  Regex::Workspace workspace;
  Outcome outcome;
  const auto applied = normalizer.Apply(text, &workspace, &outcome.front_lost);
  EXPECT_TRUE(applied.ok()) << applied.status();
  outcome.text = applied.ok() ? *applied : "";
  return outcome;
}

NormalizerStep Step(Kind kind) {
  NormalizerStep step;
  step.kind = kind;
  return step;
}

NormalizerStep ReplaceRegex(const char* pattern, const char* content) {
  NormalizerStep step = Step(Kind::kReplace);
  auto made = Pattern::OfRegex(pattern);
  EXPECT_TRUE(made.ok()) << made.status();
  step.pattern = *std::move(made);
  step.content = content;
  return step;
}

TEST(NormalizerStepsTest, LowercaseGoesCharacterByCharacter) {
  EXPECT_EQ(Apply(Step(Kind::kLowercase), "A\xC3\x89\xCE\xA3 z").text, "a\xC3\xA9\xCF\x83 z");
  // The capital I with dot is the only character that becomes two.
  EXPECT_EQ(Apply(Step(Kind::kLowercase), "\xC4\xB0").text, "i\xCC\x87");
}

TEST(NormalizerStepsTest, StripAccentsLeavesMarksOut) {
  EXPECT_EQ(Apply(Step(Kind::kStripAccents), "e\xCC\x81q\xCC\xA3\xCC\x81.").text, "eq.");
}

TEST(NormalizerStepsTest, StripTakesWhiteSpaceAtTheAskedEnds) {
  NormalizerStep step = Step(Kind::kStrip);
  step.left = true;
  EXPECT_EQ(Apply(std::move(step),
                  " \xC2\xA0"
                  "a ")
                .text,
            "a ");
  step = Step(Kind::kStrip);
  step.right = true;
  EXPECT_EQ(Apply(std::move(step), " a\xE3\x80\x80\n").text, " a");
}

TEST(NormalizerStepsTest, PrependLeavesNothingAlone) {
  NormalizerStep step = Step(Kind::kPrepend);
  step.content = "_";
  EXPECT_EQ(Apply(std::move(step), "a").text, "_a");
  step = Step(Kind::kPrepend);
  step.content = "_";
  EXPECT_EQ(Apply(std::move(step), "").text, "");
}

TEST(NormalizerStepsTest, ReplaceTakesEveryMatch) {
  EXPECT_EQ(Apply(ReplaceRegex(" {2,}", "_"), "a  b c   d").text, "a_b c_d");
  EXPECT_EQ(Apply(ReplaceRegex("x*", "-"), "axxb").text, "-a-b-");
}

TEST(NormalizerStepsTest, NmtDropsControlsAndMakesSpaces) {
  EXPECT_EQ(Apply(Step(Kind::kNmt),
                  "a\x01\x7F"
                  "b\tc\xE2\x80\x8B"
                  "d\xEF\xBB\xBF")
                .text,
            "ab c d ");
}

TEST(NormalizerStepsTest, TellsThatTheTextsFirstCharacterWentAway) {
  NormalizerStep strip = Step(Kind::kStrip);
  strip.left = true;
  EXPECT_TRUE(Apply(std::move(strip), " a").front_lost);
  EXPECT_TRUE(Apply(Step(Kind::kNmt),
                    "\x01"
                    "a")
                  .front_lost);
  EXPECT_TRUE(Apply(ReplaceRegex("a", ""), "ab").front_lost);
  EXPECT_TRUE(Apply(ReplaceRegex("aa", "x"), "aab").front_lost);
  EXPECT_FALSE(Apply(ReplaceRegex("a", "x"), "ab").front_lost);
  EXPECT_FALSE(Apply(ReplaceRegex("b", ""), "ab").front_lost);
  EXPECT_FALSE(Apply(Step(Kind::kNmt), "a\x01").front_lost);
}

TEST(NormalizerStepsTest, ATextThatGrowsWithoutBoundIsRefused) {
  std::vector<NormalizerStep> steps;
  for (int i = 0; i < 4; ++i) steps.push_back(ReplaceRegex("a", "aaaaaaaaaa"));
  const Normalizer normalizer(std::move(steps));
  Regex::Workspace workspace;
  workspace.Begin(2000);
  bool front_lost = false;
  const auto applied = normalizer.Apply(std::string(2000, 'a'), &workspace, &front_lost);
  ASSERT_FALSE(applied.ok());
  EXPECT_EQ(applied.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(applied.status().message()), HasSubstr("of a text of 2000"));
}

std::string Refusal(std::string_view blob) {
  const auto map = Charsmap::Create(blob);
  EXPECT_FALSE(map.ok());
  return std::string(map.status().message());
}

TEST(CharsmapTest, RefusesSizesThatDoNotFit) {
  using std::string_literals::operator""s;
  EXPECT_THAT(Refusal(""), HasSubstr("charsmap of 0 bytes"));
  EXPECT_THAT(Refusal("\x04\0\0"s), HasSubstr("charsmap of 3 bytes"));
  EXPECT_THAT(Refusal("\x08\0\0\0abcd"s), HasSubstr("states a trie of 8 bytes"));
  EXPECT_THAT(Refusal("\x03\0\0\0abcd"s), HasSubstr("states a trie of 3 bytes"));
  EXPECT_THAT(Refusal("\0\0\0\0abcd"s), HasSubstr("states a trie of 0 bytes"));
  EXPECT_THAT(Refusal("\x04\0\0\0\0\0\0\0a\xFF\0"s), HasSubstr("not valid UTF-8 at byte 1"));
}

TEST(CharsmapTest, UnitsThatPointOutsideMatchNothing) {
  using std::string_literals::operator""s;
  // The root's offset leads behind the array; then a leaf whose value is behind the replacements.
  const auto outside = Charsmap::Create("\x04\0\0\0\0\xFF\xFF\0x\0"s);
  ASSERT_TRUE(outside.ok()) << outside.status();
  EXPECT_EQ(outside->Apply("ab\r\n"), "ab\r\n");
}

}  // namespace
}  // namespace pergola
