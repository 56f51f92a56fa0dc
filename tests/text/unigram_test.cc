#include "coordinator/text/unigram.h"

#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

UnigramParts Parts() {
  UnigramParts parts;
  parts.pieces = {{"<unk>", 0}, {"a", -1}, {"b", -1}, {"ab", -1.5}, {"aba", -2}, {"c", -3}};
  parts.unknown_id = 0;
  return parts;
}

std::vector<int32_t> Ids(const UnigramParts& parts, std::string_view word) {
  const auto unigram = Unigram::Create(parts);
  EXPECT_TRUE(unigram.ok()) << unigram.status();
  if (!unigram.ok()) return {};
  Unigram::Scratch scratch;
  std::vector<int32_t> ids;
  const absl::Status status = unigram->Encode(word, &scratch, &ids);
  EXPECT_TRUE(status.ok()) << status;
  return ids;
}

std::string Refusal(const UnigramParts& parts) {
  const auto unigram = Unigram::Create(parts);
  EXPECT_FALSE(unigram.ok());
  return std::string(unigram.status().message());
}

TEST(UnigramTest, TakesThePathOfTheHighestScore) {
  // "ab" + "ab" scores -3, "aba" + "b" the same: the one whose last token is met first stays.
  EXPECT_THAT(Ids(Parts(), "ab"), ElementsAre(3));
  EXPECT_THAT(Ids(Parts(), "abc"), ElementsAre(3, 5));
  EXPECT_THAT(Ids(Parts(), "aab"), ElementsAre(1, 3));
  EXPECT_THAT(Ids(Parts(), "abab"), ElementsAre(3, 3));
}

TEST(UnigramTest, NeighbouringUnknownCharactersAreOne) {
  EXPECT_THAT(Ids(Parts(), "axyzb\xC3\xA9"), ElementsAre(1, 0, 2, 0));
}

TEST(UnigramTest, UnknownTextFallsBackToItsBytesIfAllAreThere) {
  UnigramParts parts = Parts();
  parts.byte_fallback = true;
  parts.pieces.push_back({"<0xC3>", -9});
  parts.pieces.push_back({"<0xA9>", -9});
  EXPECT_THAT(Ids(parts, "a\xC3\xA9\xC3\xA9"), ElementsAre(1, 6, 7, 6, 7));
  EXPECT_THAT(Ids(parts, "\xC3\xA9\xC3\xA8"), ElementsAre(0));
}

TEST(UnigramTest, OfEqualSpellingsTheLastCounts) {
  UnigramParts parts = Parts();
  parts.pieces.push_back({"c", -1});
  EXPECT_THAT(Ids(parts, "c"), ElementsAre(6));
}

TEST(UnigramTest, AnUnknownCharacterWithoutUnknownTokenIsAnError) {
  UnigramParts parts = Parts();
  parts.unknown_id = std::nullopt;
  const auto unigram = Unigram::Create(parts);
  ASSERT_TRUE(unigram.ok()) << unigram.status();
  Unigram::Scratch scratch;
  std::vector<int32_t> ids;
  EXPECT_TRUE(unigram->Encode("abc", &scratch, &ids).ok());
  const absl::Status status = unigram->Encode("ab\xC3\xA9", &scratch, &ids);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no token and no unk_id"));
}

TEST(UnigramTest, NamesWhatDoesNotFit) {
  UnigramParts parts = Parts();
  parts.unknown_id = 6;
  EXPECT_THAT(Refusal(parts), HasSubstr("unk_id is 6; the vocabulary has 6 tokens"));
  parts = Parts();
  parts.pieces[2].score = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(Refusal(parts), HasSubstr("score of token 2 is nan"));
  parts = Parts();
  parts.pieces[3].spelling = std::string(1025, 'x');
  EXPECT_THAT(Refusal(parts), HasSubstr("token 3 has 1025 bytes; the limit is 1024"));
}

}  // namespace
}  // namespace pergola
