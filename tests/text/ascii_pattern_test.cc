#include "coordinator/text/ascii_pattern.h"

#include <random>
#include <string>
#include <vector>

#include "coordinator/text/gguf_pre_tokenizers.h"
#include "coordinator/text/pattern.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

// Enough for what is tested here: every set is that of one letter, but \s and [ab].
std::optional<AsciiSet> SimpleMembers(std::string_view atom, bool /*ignore_case*/) {
  AsciiSet set;
  if (atom == "\\s") {
    set[' '] = set['\n'] = true;
  } else if (atom == "\\S") {
    set.set();
    set[' '] = set['\n'] = false;
  } else if (atom == "[ab]") {
    set['a'] = set['b'] = true;
  } else if (atom.size() == 1) {
    set[static_cast<size_t>(atom[0])] = true;
  } else {
    return std::nullopt;
  }
  return set;
}

bool IsKnown(std::string_view pattern) {
  return AsciiPattern::Create(pattern, SimpleMembers).has_value();
}

// "begin-end" of the match from `begin` on, or "?" if it cannot be told.
std::string Found(std::string_view pattern, std::string_view text, size_t begin = 0) {
  const auto made = AsciiPattern::Create(pattern, SimpleMembers);
  if (!made.has_value()) return "no pattern";
  const auto end = made->Find(text, &begin);
  if (!end.has_value()) return "?";
  return std::to_string(begin) + "-" + std::to_string(*end);
}

TEST(AsciiPatternTest, TakesTheFirstAlternativeThatMatchesNotTheLongest) {
  EXPECT_EQ(Found("a|ab", "ab"), "0-1");
  EXPECT_EQ(Found("x|[ab]+", "ab"), "0-2");
  EXPECT_EQ(Found("b|a", "xxab"), "2-3");
  EXPECT_EQ(Found("a", "aba", 1), "2-3");
}

TEST(AsciiPatternTest, GivesBackWhatTheRestNeeds) {
  EXPECT_EQ(Found("a+ab", "aaab"), "0-4");
  EXPECT_EQ(Found("a++ab|b", "aaab"), "3-4");
  EXPECT_EQ(Found("\\s+(?!\\S)|\\s", "   x"), "0-2");
  EXPECT_EQ(Found("\\s+(?!\\S)|\\s", " x"), "0-1");
  EXPECT_EQ(Found("\\s+(?!\\S)", "  "), "0-2");
}

TEST(AsciiPatternTest, Counts) {
  EXPECT_EQ(Found("a{2}", "aaa"), "0-2");
  EXPECT_EQ(Found("a{1,2}", "aaa"), "0-2");
  EXPECT_EQ(Found("xa{2}|b", "xab"), "2-3");
  EXPECT_EQ(Found("a?b", "b"), "0-1");
}

TEST(AsciiPatternTest, DoesNotTellWhatDependsOnOtherCharactersOrTakesLong) {
  EXPECT_EQ(Found("a", "\u00E9"), "?");
  EXPECT_EQ(Found("a+", "aa\u00E9"), "?");
  EXPECT_EQ(Found("a", "aa\u00E9"), "0-1");
  EXPECT_EQ(Found("a+(?!\\S)", "a\u00E9"), "?");
  EXPECT_EQ(Found("a", "xyz"), "?");  // nothing: the regular expression says so itself
  EXPECT_EQ(Found("a+", std::string(AsciiPattern::kMaxSteps + 1, 'a')), "?");
  EXPECT_EQ(Found("a", std::string(AsciiPattern::kMaxSteps, 'x') + "a"), "?");
}

TEST(AsciiPatternTest, LeavesWhatItDoesNotKnow) {
  for (const char* pattern :
       {"",      "a|",        "a*",          "a?b*",   "(a)", "(?:a)", "a(?i:b)", "(?i:a)b",
        "(?i:a", "(?i:[ab])", "(?i:\u00DF)", "^a",     "a$",  ".",     "a.",      "\\ba",
        "\\Ga",  "(?<=a)b",   "a(?=b)",      "(?!a)b", "a??", "a*?",   "a{2}?",   "a{2,}",
        "a{,2}", "a{2,1}",    "a{0}",        "a{12}",  "a**", "a)",    "[]a]",    "[^]a]",
        "[ab",   "\\p{L",     "\\pL",        "\\x41",  "a\\", "(?!a",  "a(?!b)+", "a(?!bc)"}) {
    EXPECT_FALSE(IsKnown(pattern)) << pattern;
  }
  EXPECT_FALSE(IsKnown(std::string(129, 'a')));
  EXPECT_TRUE(IsKnown(std::string(128, 'a')));
  for (const char* pattern : {"(?i:a|b)", "(?i:a|b)|c", "c|(?i:a)|[ab]?c", "a(?!b)"}) {
    EXPECT_TRUE(IsKnown(pattern)) << pattern;
  }
}

std::vector<std::string> PublishedPatterns() {
  std::vector<std::string> patterns;
  for (const char* name : {"gpt-2", "llama3", "qwen2", "qwen35", "bloom", "tekken", "deepseek-v3",
                           "deepseek-llm", "deepseek-coder", "seed-coder", "gpt-4o"}) {
    const auto definition = FindGgufPreTokenizer(name);
    EXPECT_TRUE(definition.ok()) << name;
    if (!definition.ok()) continue;
    patterns.insert(patterns.end(), (*definition)->patterns.begin(), (*definition)->patterns.end());
  }
  // OpenAI's own way to write cl100k_base.
  patterns.emplace_back(R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3})"
                        R"(| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)");
  return patterns;
}

std::string RandomText(std::mt19937* random) {
  static constexpr const char* kPieces[] = {"a",       "b",      "Z",
                                            "'s",      "'S",     "'LL",
                                            "'\u017F", "ss",     "\u00DF",
                                            " ",       "  ",     "\n",
                                            "\r\n",    "\t",     "1",
                                            "23",      ".",      "!?",
                                            "(",       ")",      "[",
                                            "|",       "$",      "=",
                                            "_",       "-",      "\\",
                                            "é",       "\u00A0", "\u0301",
                                            "\u4E2D",  "\u3042", "\xF0\x9F\x91\x8D",
                                            "\u00B2",  "~",      "^"};
  std::string text;
  for (size_t length = (*random)() % 24; length > 0; --length) {
    // Mostly ASCII, so that long runs of it come too.
    const size_t count = (*random)() % 8 == 0 ? std::size(kPieces) : 24;
    text += kPieces[(*random)() % count];
  }
  return text;
}

std::string Described(const Pattern& pattern, const std::string& text) {
  Regex::Workspace workspace;
  workspace.Begin(text.size());
  Ranges ranges;
  const absl::Status status = pattern.FindAll(text, &workspace, &ranges);
  std::string description = status.ToString();
  for (const auto& [range, is_match] : ranges) {
    description += (is_match ? " +" : " -") + std::to_string(range.end);
  }
  return description;
}

TEST(AsciiPatternTest, FindsWhatOnigurumaFinds) {
  for (const std::string& published : PublishedPatterns()) {
    const auto pattern = Pattern::OfRegex(published);
    ASSERT_TRUE(pattern.ok()) << published;
    // A group around it all says the same, but leaves no shortcut.
    const auto slow = Pattern::OfRegex("(?:" + published + ")");
    ASSERT_TRUE(slow.ok()) << published;
    std::mt19937 random(1);
    for (int i = 0; i < 2000; ++i) {
      const std::string text = RandomText(&random);
      ASSERT_EQ(Described(*pattern, text), Described(*slow, text)) << published << "\n" << text;
    }
    for (const size_t length : {200U, 255U, 256U, 300U, 5000U}) {
      for (const char* end : {"", "x", "\n", " \n x", "\u00E9"}) {
        const std::string text = std::string(length, ' ') + end;
        ASSERT_EQ(Described(*pattern, text), Described(*slow, text)) << published << length << end;
      }
    }
  }
}

}  // namespace
}  // namespace pergola
