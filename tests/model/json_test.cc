#include "model/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pergola {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const absl::Status& status) {
  return std::string(status.message());
}

TEST(JsonTest, GivesTypedValuesAndFallbacks) {
  const auto json = ParseJsonObject(R"({"a": 3, "b": null, "c": 2.5, "d": true, "e": "x"})", "f");
  ASSERT_TRUE(json.ok()) << json.status();
  const JsonObject object(*json, "f");
  EXPECT_EQ(object.Int("a", 0, 1, 3).value(), 3);
  EXPECT_EQ(object.Int("b", 7, 1, 3).value(), 7);
  EXPECT_EQ(object.Int("missing", 9, 1, 3).value(), 9);
  EXPECT_EQ(object.Number("c", 0, 0, 3).value(), 2.5);
  EXPECT_EQ(object.Bool("d", false).value(), true);
  EXPECT_EQ(object.String("e", "").value(), "x");
  EXPECT_TRUE(object.Find("b") != nullptr && !object.Has("b"));
}

TEST(JsonTest, NamesPlaceValueAndLimit) {
  const auto json = ParseJsonObject(
      R"({"a": 4, "b": "x", "c": 1.5, "d": 18446744073709551615, "e": {"f": -1}})", "config.json");
  ASSERT_TRUE(json.ok());
  const JsonObject object(*json, "config.json");
  EXPECT_EQ(ErrorOf(object.Int("a", 0, 1, 3).status()),
            "config.json: a is 4, but must be an integer from 1 to 3");
  EXPECT_FALSE(object.Int("b", 0, 1, 3).ok());
  EXPECT_FALSE(object.Int("c", 0, 1, 3).ok());
  EXPECT_FALSE(object.Int("d", 0, INT64_MIN, INT64_MAX).ok());
  EXPECT_FALSE(object.Number("b", 0, 1, 3).ok());
  EXPECT_FALSE(object.Bool("a", false).ok());
  EXPECT_FALSE(object.String("a", "").ok());
  EXPECT_FALSE(object.Object("a").ok());
  EXPECT_THAT(ErrorOf(object.Object("e")->Int("f", 0, 0, 9).status()),
              HasSubstr("config.json: e: f is -1"));
}

TEST(JsonTest, RefusesAKeyGivenTwiceAtAnyDepth) {
  EXPECT_THAT(ErrorOf(ParseJson(R"({"a": 1, "a": 2})", "f").status()),
              HasSubstr("key \"a\" is given twice"));
  EXPECT_FALSE(ParseJson(R"([{"x": {"b": 1, "c": 2, "b": 3}}])", "f").ok());
}

TEST(JsonTest, TakesEqualKeysInDifferentObjects) {
  EXPECT_TRUE(ParseJson(R"({"a": {"k": 1}, "b": {"k": 1}, "c": [{"k": 1}, {"k": 2}]})", "f").ok());
  EXPECT_TRUE(ParseJson(R"({"k": {"k": {"k": 1}}, "l": 2})", "f").ok());
}

TEST(JsonTest, RefusesNestingBeyondTheLimit) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(ParseJson(nested(kMaxJsonDepth), "f").ok());
  EXPECT_FALSE(ParseJson(nested(kMaxJsonDepth + 1), "f").ok());
  EXPECT_THAT(ErrorOf(ParseJson(nested(kMaxJsonDepth + 2), "f").status()),
              HasSubstr("nested deeper than 64"));
  EXPECT_FALSE(ParseJson(nested(100000), "f").ok());
}

TEST(JsonTest, RefusesWhatIsNotJson) {
  for (const char* text : {"", "{", "{]", "{\"a\":}", "nul", "{\"a\":1e999}", "{\"a\":1} x",
                           "{\"a\":\"\xff\"}", "NaN"}) {
    EXPECT_FALSE(ParseJson(text, "f").ok()) << text;
  }
  EXPECT_FALSE(ParseJsonObject("[1]", "f").ok());
  EXPECT_EQ(ErrorOf(ParseJson("[1, x]", "f").status()), "f: is not valid JSON at byte 5");
}

TEST(JsonTest, KeepsEveryKindOfValueInItsPlace) {
  const char* text =
      R"([null,true,-1,18446744073709551615,2.5,"x",[],{},[[1],{"a":[2],"b":{"c":3}}],4])";
  const auto json = ParseJson(text, "f");
  ASSERT_TRUE(json.ok()) << json.status();
  EXPECT_EQ(json->dump(), text);
  EXPECT_EQ(ParseJson(" 7 ", "f").value(), 7);
}

// With the library's own callbacks each of these took time quadratic in the count: half an hour.
TEST(JsonTest, ReadsManySmallObjectsInLinearTime) {
  constexpr int kCount = 500000;
  std::string list = "[{}";
  std::string object = "{\"x\":{}";
  for (int i = 1; i < kCount; ++i) {
    list += ",{}";
    object += ",\"" + std::to_string(i) + "\":{}";
  }
  EXPECT_EQ(ParseJson(list + "]", "f")->size(), kCount);
  EXPECT_EQ(ParseJson(object + "}", "f")->size(), kCount);
}

TEST(JsonTest, RefusesMoreValuesThanTheLimit) {
  std::string text = "[0";
  for (int64_t i = 1; i < kMaxJsonValues; ++i) text += ",0";
  EXPECT_EQ(ErrorOf(ParseJson(text + "]", "f").status()), "f: holds more than 16777216 values");
}

}  // namespace
}  // namespace pergola
