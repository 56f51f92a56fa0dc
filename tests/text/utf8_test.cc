#include "coordinator/text/utf8.h"

#include "coordinator/text/normalizer.h"
#include "coordinator/text/tokenizer.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

constexpr char kR[] = "\xEF\xBF\xBD";

std::string Lossy(std::string_view bytes) {
  LossyUtf8Decoder decoder;
  std::string out;
  decoder.Push(bytes, &out);
  decoder.Finish(&out);
  return out;
}

TEST(FindInvalidUtf8Test, AcceptsTheEdgesOfEveryLength) {
  EXPECT_EQ(FindInvalidUtf8(""), -1);
  EXPECT_EQ(FindInvalidUtf8(std::string_view("\0", 1)), -1);
  EXPECT_EQ(FindInvalidUtf8("\x7F\xC2\x80\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xEF\xBF\xBF"
                            "\xF0\x90\x80\x80\xF4\x8F\xBF\xBF"),
            -1);
}

TEST(FindInvalidUtf8Test, FindsTheFirstByteOfEachKindOfError) {
  EXPECT_EQ(FindInvalidUtf8("a\x80"), 1);                 // a lone continuation byte
  EXPECT_EQ(FindInvalidUtf8("ab\xC0\xAF"), 2);            // overlong, 2 bytes
  EXPECT_EQ(FindInvalidUtf8("\xE0\x9F\xBF"), 0);          // overlong, 3 bytes
  EXPECT_EQ(FindInvalidUtf8("\xF0\x8F\xBF\xBF"), 0);      // overlong, 4 bytes
  EXPECT_EQ(FindInvalidUtf8("\xC3\xA9\xED\xA0\x80"), 2);  // a surrogate
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0);      // above U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("12345678\xE2\x82"), 8);      // cut short
  EXPECT_EQ(FindInvalidUtf8("1234567890\xF5\x80\x80\x80"), 10);
}

TEST(LossyUtf8DecoderTest, ReplacesEachMaximalInvalidSubsequenceOnce) {
  EXPECT_EQ(Lossy("a\xE2\x82z"), std::string("a") + kR + "z");
  EXPECT_EQ(Lossy("\xE2\x82"), kR);
  EXPECT_EQ(Lossy("\xF0\x9F\x91\xE2\x82\xAC"), std::string(kR) + "\xE2\x82\xAC");
  EXPECT_EQ(Lossy("\xE0\x80\x80"), std::string(kR) + kR + kR);
  EXPECT_EQ(Lossy("\xED\xA0\x80"), std::string(kR) + kR + kR);
  EXPECT_EQ(Lossy("\x80\xFF"), std::string(kR) + kR);
}

TEST(LossyUtf8DecoderTest, GivesTheSameForAnyCutOfTheBytes) {
  const std::string bytes = "x\xF0\x9F\x91\x8D\xE2\x82y\xF4\x90\x80\xC3\xA9\xED\x9F\xBF\xF0\x9F";
  const std::string whole = Lossy(bytes);
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    LossyUtf8Decoder decoder;
    std::string out;
    decoder.Push(std::string_view(bytes).substr(0, cut), &out);
    decoder.Push(std::string_view(bytes).substr(cut), &out);
    decoder.Finish(&out);
    EXPECT_EQ(out, whole) << cut;
  }
}

TEST(NormalizerTest, OrdersALongRunOfMarksInCanonicalOrder) {
  // Alternating classes 230 (U+0301) and 220 (U+0323): the worst case of an insertion sort. 200,000
  // marks take milliseconds here and would take minutes there.
  constexpr int kPairs = 100000;
  std::string text = "q";
  std::string expected = "q";
  for (int i = 0; i < kPairs; ++i) text += "\xCC\x81\xCC\xA3";
  for (int i = 0; i < kPairs; ++i) expected += "\xCC\xA3";
  for (int i = 0; i < kPairs; ++i) expected += "\xCC\x81";
  EXPECT_EQ(Normalize(text, NormalForm::kNfc), expected);
}

TEST(NormalizerTest, FormsDifferWhereTheyShould) {
  const std::string composed = "\xC3\xA9";
  const std::string decomposed = "e\xCC\x81";
  EXPECT_EQ(Normalize(decomposed, NormalForm::kNfc), composed);
  EXPECT_EQ(Normalize(composed, NormalForm::kNfd), decomposed);
  EXPECT_EQ(Normalize("\xEF\xAC\x81", NormalForm::kNfc), "\xEF\xAC\x81");
  EXPECT_EQ(Normalize("\xEF\xAC\x81", NormalForm::kNfkc), "fi");
  EXPECT_EQ(Normalize("\xEF\xAC\x81", NormalForm::kNfkd), "fi");
}

}  // namespace
}  // namespace pergola
