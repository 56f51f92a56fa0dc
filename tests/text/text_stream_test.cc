// Streams over a tokenizer whose tokens are given byte strings.
#include <random>

#include "coordinator/text/tokenizer.h"
#include "coordinator/text/utf8.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

constexpr char kR[] = "\xEF\xBF\xBD";
constexpr int32_t kSpecial = 1000;

class FakeTokenizer final : public Tokenizer {
 public:
  explicit FakeTokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view, bool) const override {
    return absl::UnimplementedError("not used");
  }
  std::string Decode(absl::Span<const int32_t> ids, bool skip) const override {
    LossyUtf8Decoder decoder;
    std::string text;
    for (const int32_t id : ids) decoder.Push(TokenBytes(id, skip), &text);
    decoder.Finish(&text);
    return text;
  }
  std::string_view TokenBytes(int32_t id, bool skip) const override {
    if (id == kSpecial) return skip ? "" : "<|end|>";
    return tokens_.at(static_cast<size_t>(id));
  }
  int32_t vocabulary_size() const override { return kSpecial + 1; }

 private:
  std::vector<std::string> tokens_;
};

struct Outcome {
  std::vector<std::string> deltas;
  std::string text;  // deltas and flush
  bool stopped = false;
  std::string stop_string;
};

// Pushes the tokens one by one; a stop ends it, else Flush does.
Outcome StreamAll(const std::vector<std::string>& tokens, std::vector<std::string> stops) {
  const FakeTokenizer tokenizer(tokens);
  const auto stream = MakeTextStream(tokenizer, std::move(stops));
  Outcome outcome;
  for (size_t i = 0; i < tokens.size() && !outcome.stopped; ++i) {
    const TextStream::Delta delta = stream->Push(static_cast<int32_t>(i));
    outcome.deltas.push_back(delta.text);
    outcome.text += delta.text;
    outcome.stopped = delta.stopped;
    outcome.stop_string = delta.stop_string;
  }
  outcome.text += stream->Flush();
  return outcome;
}

using Strings = std::vector<std::string>;

TEST(TextStreamTest, ShowsWholeTokensAtOnceWithoutStops) {
  EXPECT_EQ(StreamAll({"Hello", ", ", "world"}, {}).deltas, (Strings{"Hello", ", ", "world"}));
}

TEST(TextStreamTest, HoldsBackASplitEmoji) {
  const Outcome outcome = StreamAll({"a\xF0\x9F", "\x91", "\x8D!"}, {});
  EXPECT_EQ(outcome.deltas, (Strings{"a", "", "\xF0\x9F\x91\x8D!"}));
}

TEST(TextStreamTest, AnIncompleteCharacterAtTheEndBecomesOneReplacement) {
  const Outcome outcome = StreamAll({"a", "\xF0\x9F\x91"}, {});
  EXPECT_EQ(outcome.deltas, (Strings{"a", ""}));
  EXPECT_EQ(outcome.text, std::string("a") + kR);
}

TEST(TextStreamTest, AnInterruptedCharacterIsReplacedAsSoonAsThatIsKnown) {
  EXPECT_EQ(StreamAll({"\xE2\x82", "z"}, {}).deltas, (Strings{"", std::string(kR) + "z"}));
}

TEST(TextStreamTest, SpecialTokensAreNotShown) {
  const FakeTokenizer tokenizer({"\xF0\x9F", "\x91\x8D"});
  const auto stream = MakeTextStream(tokenizer, {});
  EXPECT_EQ(stream->Push(0).text, "");
  EXPECT_EQ(stream->Push(kSpecial).text, "");
  EXPECT_EQ(stream->Push(1).text, "\xF0\x9F\x91\x8D");
  EXPECT_EQ(stream->Flush(), "");
}

TEST(TextStreamTest, AStopAcrossTokensIsNeverShownInPart) {
  const Outcome outcome = StreamAll({"one S", "TO", "P two"}, {"STOP"});
  EXPECT_EQ(outcome.deltas, (Strings{"one ", "", ""}));
  EXPECT_TRUE(outcome.stopped);
  EXPECT_EQ(outcome.stop_string, "STOP");
  EXPECT_EQ(outcome.text, "one ");
}

TEST(TextStreamTest, ABeginningThatComesToNothingIsShown) {
  const Outcome outcome = StreamAll({"ST", "O", "ne"}, {"STOP"});
  EXPECT_EQ(outcome.deltas, (Strings{"", "", "STOne"}));
  EXPECT_FALSE(outcome.stopped);
}

TEST(TextStreamTest, FlushGivesTheBeginningOfAStop) {
  EXPECT_EQ(StreamAll({"x", "STO"}, {"STOP"}).text, "xSTO");
}

TEST(TextStreamTest, HoldsBackNoMoreThanAStopCouldUse) {
  // After "aaab" only the last "ab" could begin the stop string "abc".
  EXPECT_EQ(StreamAll({"aaab"}, {"abc"}).deltas, (Strings{"aa"}));
  EXPECT_EQ(StreamAll({"abab", "ac"}, {"ababac"}).stopped, true);
  EXPECT_EQ(StreamAll({"ababab", "ac"}, {"ababac"}).text, "ab");
}

TEST(TextStreamTest, TheStopCompletedFirstWins) {
  const Outcome outcome = StreamAll({"xabcdy"}, {"abcd", "bc"});
  EXPECT_EQ(outcome.stop_string, "bc");
  EXPECT_EQ(outcome.text, "xa");
}

TEST(TextStreamTest, OfStopsCompletedAtOneByteTheLongestWins) {
  for (const Strings& stops : {Strings{"bcd", "abcd", "d"}, Strings{"abcd", "d", "bcd"}}) {
    const Outcome outcome = StreamAll({"xab", "cdy"}, stops);
    EXPECT_EQ(outcome.stop_string, "abcd");
    EXPECT_EQ(outcome.text, "x");
  }
}

TEST(TextStreamTest, AStopWithinALongerFailedOneIsFound) {
  EXPECT_EQ(StreamAll({"abcx"}, {"abcd", "bcx"}).stop_string, "bcx");
  EXPECT_EQ(StreamAll({"abcx"}, {"abcd", "bcx"}).text, "a");
}

TEST(TextStreamTest, AStopMayStartInTheMiddleOfACharactersToken) {
  const Outcome outcome =
      StreamAll({"a\xF0\x9F", "\x91\x8D\xC3", "\xA9z"}, {"\xF0\x9F\x91\x8D\xC3\xA9"});
  EXPECT_TRUE(outcome.stopped);
  EXPECT_EQ(outcome.text, "a");
}

TEST(TextStreamTest, NothingFollowsAStop) {
  const FakeTokenizer tokenizer({"aSTOPb", "c"});
  const auto stream = MakeTextStream(tokenizer, {"STOP"});
  EXPECT_TRUE(stream->Push(0).stopped);
  const TextStream::Delta after = stream->Push(1);
  EXPECT_EQ(after.text, "");
  EXPECT_FALSE(after.stopped);
  EXPECT_EQ(stream->Flush(), "");
}

TEST(TextStreamTest, EmptyAndInvalidStopsNeverMatch) {
  const Outcome outcome = StreamAll({"ab\xC3\xA9"}, {"", "\xA9", "\xC3"});
  EXPECT_FALSE(outcome.stopped);
  EXPECT_EQ(outcome.deltas, (Strings{"ab\xC3\xA9"}));
}

// The naive meaning: the first byte at which some stop string ends; the longest that ends there.
Outcome Naive(const std::string& text, const Strings& stops) {
  Outcome outcome;
  for (size_t end = 1; end <= text.size(); ++end) {
    for (const std::string& stop : stops) {
      if (stop.size() > end || text.compare(end - stop.size(), stop.size(), stop) != 0) continue;
      if (stop.size() > outcome.stop_string.size()) outcome.stop_string = stop;
    }
    if (outcome.stop_string.empty()) continue;
    outcome.stopped = true;
    outcome.text = text.substr(0, end - outcome.stop_string.size());
    return outcome;
  }
  outcome.text = text;
  return outcome;
}

TEST(TextStreamTest, EqualsTheNaiveSearchOnRandomTokens) {
  constexpr uint32_t kSeed = 20261121;
  std::mt19937 random(kSeed);
  const Strings pieces = {"a",    "b",        "ab",       "ba",       "\xC3",
                          "\xA9", "\xC3\xA9", "\xF0\x9F", "\x91\x8D", "\xFF"};
  const Strings alphabet = {"a", "b", "\xC3\xA9", kR, "\xF0\x9F\x91\x8D"};
  for (int round = 0; round < 3000; ++round) {
    Strings tokens(random() % 30);
    for (auto& token : tokens) token = pieces[random() % pieces.size()];
    Strings stops(random() % 4);
    for (auto& stop : stops) {
      for (size_t i = 1 + random() % 5; i > 0; --i) stop += alphabet[random() % alphabet.size()];
    }
    std::vector<int32_t> ids;
    for (size_t i = 0; i < tokens.size(); ++i) ids.push_back(static_cast<int32_t>(i));
    const std::string whole = FakeTokenizer(tokens).Decode(ids, true);
    const Outcome expected = Naive(whole, stops);
    const Outcome actual = StreamAll(tokens, stops);
    ASSERT_EQ(actual.text, expected.text) << "round " << round << " of seed " << kSeed;
    for (const std::string& delta : actual.deltas) ASSERT_EQ(FindInvalidUtf8(delta), -1);
  }
}

}  // namespace
}  // namespace pergola
