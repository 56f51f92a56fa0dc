#include "base/cli/number_option.h"

#include <vector>

#include "gtest/gtest.h"

namespace pergola {
namespace {

struct Numbers {
  int64_t rows = 7;
  std::optional<uint64_t> seed;
  std::optional<float> top_p;
};

// The error's one line; empty if there was none.
std::string Parse(std::vector<std::string> arguments, Numbers* numbers) {
  CLI::App app("test");
  AddNumber(app, "--rows", &numbers->rows, {1, 64}, "rows");
  AddNumber(app, "--seed", &numbers->seed, {0, UINT64_MAX}, "seed");
  AddNumber(app, "--top-p", &numbers->top_p, {0, 1, true}, "share");
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 wants them
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
  return "";
}

std::string ErrorOf(const std::string& name, const std::string& value) {
  Numbers numbers;
  return Parse({name, value}, &numbers);
}

TEST(NumberOptionTest, TakesNumbersUpToBothLimits) {
  Numbers numbers;
  EXPECT_EQ(Parse({"--rows", "64", "--seed", "18446744073709551615", "--top-p", "1"}, &numbers),
            "");
  EXPECT_EQ(numbers.rows, 64);
  EXPECT_EQ(numbers.seed, UINT64_MAX);
  EXPECT_EQ(numbers.top_p, 1.0F);
  EXPECT_EQ(Parse({"--rows", "1", "--seed", "0", "--top-p", "1e-6"}, &numbers), "");
  EXPECT_EQ(numbers.rows, 1);
  EXPECT_EQ(numbers.seed, 0U);
  EXPECT_EQ(numbers.top_p, 1e-6F);
}

TEST(NumberOptionTest, WhatIsNotGivenStaysAsItWas) {
  Numbers numbers;
  EXPECT_EQ(Parse({}, &numbers), "");
  EXPECT_EQ(numbers.rows, 7);
  EXPECT_FALSE(numbers.seed.has_value());
}

TEST(NumberOptionTest, RefusesWithOptionValueAndLimits) {
  EXPECT_EQ(ErrorOf("--rows", "0"), "--rows 0: must be 1 to 64");
  EXPECT_EQ(ErrorOf("--rows", "65"), "--rows 65: must be 1 to 64");
  EXPECT_EQ(ErrorOf("--seed", "-1"), "--seed -1: must be 0 to 18446744073709551615");
  EXPECT_EQ(ErrorOf("--top-p", "2"), "--top-p 2: must be above 0 and at most 1");
  EXPECT_EQ(ErrorOf("--top-p", "0"), "--top-p 0: must be above 0 and at most 1");
}

TEST(NumberOptionTest, RefusesNumbersThatDoNotFitTheirType) {
  EXPECT_EQ(ErrorOf("--rows", "99999999999999999999"),
            "--rows 99999999999999999999: must be 1 to 64");
  EXPECT_EQ(ErrorOf("--seed", "18446744073709551616"),
            "--seed 18446744073709551616: must be 0 to 18446744073709551615");
}

TEST(NumberOptionTest, RefusesWhatIsNoNumberOrNotWholly) {
  for (const std::string text : {"x", "", "1x", "1.5", "0x10", "1 2"}) {
    EXPECT_EQ(ErrorOf("--rows", text), "--rows " + text + ": must be 1 to 64");
  }
  for (const std::string text : {"nan", "inf", "-inf", "half"}) {
    EXPECT_EQ(ErrorOf("--top-p", text), "--top-p " + text + ": must be above 0 and at most 1");
  }
}

TEST(NumberOptionTest, LeadingZerosAreNotOctal) {
  Numbers numbers;
  EXPECT_EQ(Parse({"--rows", "010"}, &numbers), "");
  EXPECT_EQ(numbers.rows, 10);
}

}  // namespace
}  // namespace pergola
