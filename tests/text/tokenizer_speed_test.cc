// Prints how fast text is encoded; asserts only that nothing is lost. A quadratic step would take
// minutes here.
#include <chrono>
#include <cstdio>

#include "tests/text/text_testing.h"

namespace pergola {
namespace {

constexpr size_t kBytes = 1 << 20;

void EncodeAndPrint(const char* tokenizer_name, const char* what, const std::string& text) {
  const auto tokenizer =
      TokenizerFromJson(ReadGolden(std::string(tokenizer_name) + ".tokenizer.json"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto begin = std::chrono::steady_clock::now();
  const auto ids = (*tokenizer)->Encode(text, false);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  ASSERT_TRUE(ids.ok()) << ids.status();
  std::printf("%-9s 1 MiB of %-20s %7.1f ms, %7zu ids, %5.1f MB/s\n", tokenizer_name, what,
              seconds.count() * 1e3, ids->size(),
              static_cast<double>(text.size()) / 1e6 / seconds.count());
  EXPECT_EQ((*tokenizer)->Decode(*ids, false), text);
}

std::string Repeated(const std::string& piece) {
  std::string text;
  while (text.size() < kBytes) text += piece;
  return text;
}

class TokenizerSpeedTest : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerSpeedTest, PrintsTheTimeOfOneMebibyte) {
  EncodeAndPrint(GetParam(), "text",
                 Repeated("The capital of France is Paris, they'll say 1234. "));
  EncodeAndPrint(GetParam(), "one word", Repeated("a"));
  EncodeAndPrint(GetParam(), "one varied word", Repeated("anothershortwordthenlongerones"));
  EncodeAndPrint(GetParam(), "spaces", Repeated(" "));
  EncodeAndPrint(GetParam(), "newlines", Repeated("\n"));
  EncodeAndPrint(GetParam(), "digits", Repeated("1234567890"));
  EncodeAndPrint(GetParam(), "brackets", Repeated("(|."));
  EncodeAndPrint(GetParam(), "Chinese", Repeated("\xE4\xB8\xAD\xE6\x96\x87\xE6\x96\x87"));
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerSpeedTest,
                         testing::Values("gpt2", "llama3", "starcoder", "bloom"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace pergola
