#include "model/generation_defaults.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<GenerationDefaults> Read(const std::string& text, bool is_config_json = false) {
  const auto json = ParseJsonObject(text, "file");
  if (!json.ok()) return json.status();
  GenerationDefaults defaults;
  const JsonObject config(*json, "file");
  const absl::Status status = is_config_json ? ReadGenerationKeys(config, &defaults)
                                             : ReadGenerationConfig(config, &defaults);
  if (!status.ok()) return status;
  return defaults;
}

TEST(GenerationDefaultsTest, ReadsEverythingThatIsHonoured) {
  const auto defaults = Read(R"({"eos_token_id": [3, 4], "do_sample": true, "temperature": 0.5,
      "top_k": 7, "top_p": 0.25, "min_p": 0.125, "typical_p": 0.75, "repetition_penalty": 1.5,
      "no_repeat_ngram_size": 3, "max_new_tokens": 99, "max_length": 400, "min_new_tokens": 2,
      "pad_token_id": 0, "bos_token_id": 1, "transformers_version": "5.0", "use_cache": true})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->eos_ids, ElementsAre(3, 4));
  EXPECT_EQ(defaults->do_sample, true);
  EXPECT_EQ(defaults->temperature, 0.5F);
  EXPECT_EQ(defaults->top_k, 7U);
  EXPECT_EQ(defaults->top_p, 0.25F);
  EXPECT_EQ(defaults->min_p, 0.125F);
  EXPECT_EQ(defaults->typical_p, 0.75F);
  EXPECT_EQ(defaults->repetition_penalty, 1.5F);
  EXPECT_EQ(defaults->no_repeat_ngram_size, 3U);
  EXPECT_EQ(defaults->max_new_tokens, 99U);
  EXPECT_EQ(defaults->max_length, 400U);
  EXPECT_EQ(defaults->min_new_tokens, 2U);
  EXPECT_THAT(defaults->ignored, IsEmpty());
}

TEST(GenerationDefaultsTest, LeavesWhatIsNotStatedUnset) {
  const auto defaults = Read(R"({"temperature": null, "max_length": 0})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->eos_ids, IsEmpty());
  EXPECT_FALSE(defaults->do_sample.has_value());
  EXPECT_FALSE(defaults->temperature.has_value());
  EXPECT_FALSE(defaults->top_k.has_value());
  EXPECT_FALSE(defaults->max_length.has_value());
}

// transformers 5.23: GenerationConfig._get_default_generation_params.
TEST(GenerationDefaultsTest, AModelThatSamplesHasHuggingFacesTopKUnlessItSaysOtherwise) {
  EXPECT_EQ(Read(R"({"do_sample": true})")->top_k, 50U);
  EXPECT_EQ(Read(R"({"do_sample": true, "top_k": null})")->top_k, 50U);
  EXPECT_EQ(Read(R"({"do_sample": true, "top_k": 0})")->top_k, 0U);
  EXPECT_FALSE(Read(R"({"do_sample": false})")->top_k.has_value());
}

TEST(GenerationDefaultsTest, NamesWhatItCannotHonour) {
  const auto defaults = Read(R"({"num_beams": 4, "suppress_tokens": [1, 2], "stop_strings": "x",
      "guidance_scale": 1.5, "renormalize_logits": true, "of_tomorrow": 0.5})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->ignored,
              ElementsAre("file: guidance_scale is 1.5, which is not supported and left out",
                          "file: num_beams is 4, which is not supported and left out",
                          "file: of_tomorrow is 0.5, which is not supported and left out",
                          "file: renormalize_logits is true, which is not supported and left out",
                          "file: stop_strings is \\\"x\\\", which is not supported and left out",
                          "file: suppress_tokens is [1,2], which is not supported and left out"));
}

TEST(GenerationDefaultsTest, SaysNothingOfSettingsThatDoNothing) {
  const auto defaults = Read(R"({"num_beams": 1, "suppress_tokens": [], "stop_strings": null,
      "guidance_scale": 1.0, "renormalize_logits": false, "of_tomorrow": 0, "bad_words_ids": null,
      "diversity_penalty": 0.0, "encoder_repetition_penalty": 1, "watermarking_config": {}})");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_THAT(defaults->ignored, IsEmpty());
}

TEST(GenerationDefaultsTest, BoundsWhatItSays) {
  std::string text = "{\"long\": \"" + std::string(100000, 'x') + "\"";
  for (int i = 0; i < 1000; ++i) text += ", \"unknown" + std::to_string(i) + "\": 5";
  const auto defaults = Read(text + "}");
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->ignored.size(), 64U);
  for (const std::string& line : defaults->ignored) EXPECT_LT(line.size(), 1000U);
}

TEST(GenerationDefaultsTest, OfConfigJsonOnlyKeysOfGenerationCount) {
  const auto defaults =
      Read(R"({"hidden_size": 8, "temperature": 0.5, "num_beams": 2, "eos_token_id": 3})", true);
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->temperature, 0.5F);
  EXPECT_THAT(defaults->eos_ids, IsEmpty());
  EXPECT_THAT(defaults->ignored,
              ElementsAre("file: num_beams is 2, which is not supported and left out"));
}

TEST(GenerationDefaultsTest, RefusesBrokenValuesByName) {
  for (const char* text :
       {R"({"max_new_tokens": -1})", R"({"max_length": 1.5})", R"({"min_new_tokens": "4"})",
        R"({"no_repeat_ngram_size": 4294967296})", R"({"repetition_penalty": 101})",
        R"({"typical_p": 1.5})", R"({"temperature": true})", R"({"do_sample": "yes"})"}) {
    const auto defaults = Read(text);
    ASSERT_FALSE(defaults.ok()) << text;
    EXPECT_THAT(std::string(defaults.status().message()), HasSubstr("file: ")) << text;
  }
  std::string ids = "[0";
  for (int i = 0; i < 64; ++i) ids += ",1";
  EXPECT_FALSE(Read(R"({"eos_token_id": )" + ids + "]}").ok());
}

GgufValue FloatValue(float value) {
  GgufValue made;
  made.type = GgufType::kFloat32;
  made.bytes.assign(reinterpret_cast<const char*>(&value), sizeof(value));
  return made;
}

GgufValue IntValue(int32_t value) {
  GgufValue made;
  made.type = GgufType::kInt32;
  made.bytes.assign(reinterpret_cast<const char*>(&value), sizeof(value));
  return made;
}

TEST(GenerationDefaultsTest, ReadsTheSamplingOfAGgufFile) {
  GgufMetadata metadata("file");
  ASSERT_TRUE(metadata.Add("general.sampling.temp", FloatValue(0.5F)).ok());
  ASSERT_TRUE(metadata.Add("general.sampling.top_k", IntValue(20)).ok());
  ASSERT_TRUE(metadata.Add("general.sampling.top_p", FloatValue(0.25F)).ok());
  ASSERT_TRUE(metadata.Add("general.sampling.min_p", FloatValue(0.125F)).ok());
  ASSERT_TRUE(metadata.Add("general.sampling.penalty_repeat", FloatValue(1.5F)).ok());
  ASSERT_TRUE(metadata.Add("general.sampling.mirostat", IntValue(2)).ok());
  GenerationDefaults defaults;
  ASSERT_TRUE(ReadGgufSampling(metadata, &defaults).ok());
  EXPECT_EQ(defaults.do_sample, true);
  EXPECT_EQ(defaults.temperature, 0.5F);
  EXPECT_EQ(defaults.top_k, 20U);
  EXPECT_EQ(defaults.top_p, 0.25F);
  EXPECT_EQ(defaults.min_p, 0.125F);
  EXPECT_EQ(defaults.repetition_penalty, 1.5F);
  EXPECT_THAT(defaults.ignored,
              ElementsAre("file: general.sampling.mirostat is not supported and left out"));
}

TEST(GenerationDefaultsTest, AGgufFileThatSaysNothingIsGreedyAndSoIsTemperatureZero) {
  GenerationDefaults nothing;
  ASSERT_TRUE(ReadGgufSampling(GgufMetadata("file"), &nothing).ok());
  EXPECT_FALSE(nothing.do_sample.has_value());
  GgufMetadata metadata("file");
  ASSERT_TRUE(metadata.Add("general.sampling.temp", FloatValue(0)).ok());
  ASSERT_TRUE(metadata.Add("general.sampling.top_k", IntValue(-1)).ok());
  GenerationDefaults zero;
  ASSERT_TRUE(ReadGgufSampling(metadata, &zero).ok());
  EXPECT_EQ(zero.do_sample, false);
  EXPECT_EQ(zero.top_k, 0U);
}

TEST(GenerationDefaultsTest, RefusesTheBrokenSamplingOfAGgufFile) {
  GgufMetadata metadata("file");
  ASSERT_TRUE(metadata.Add("general.sampling.temp", FloatValue(-1)).ok());
  GenerationDefaults defaults;
  EXPECT_THAT(std::string(ReadGgufSampling(metadata, &defaults).message()),
              HasSubstr("file: general.sampling.temp is -1"));
}

}  // namespace
}  // namespace pergola
