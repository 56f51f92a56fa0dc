// The request that the flags of `pergola generate` make, and the flags it refuses.
#include "client/generate_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

struct Parsed {
  v1::GenerateRequest request;
  std::string error;  // of the flags or of the request
};

Parsed Parse(std::vector<std::string> arguments) {
  CLI::App app;
  GenerateFlags flags;
  AddGenerateFlags(app, &flags);
  Parsed parsed;
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants a vector
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    parsed.error = error.what();
    return parsed;
  }
  auto request = MakeGenerateRequest(flags, "prompt");
  parsed.error = std::string(request.status().message());
  if (request.ok()) parsed.request = *std::move(request);
  return parsed;
}

TEST(GenerateFlagsTest, WithoutFlagsOnlyThePromptIsSet) {
  const v1::GenerateRequest request = Parse({}).request;
  v1::GenerateRequest bare;
  bare.set_text("prompt");
  bare.mutable_sampling();
  bare.mutable_stop();
  EXPECT_EQ(request.SerializeAsString(), bare.SerializeAsString());
}

TEST(GenerateFlagsTest, EverySamplingFlagReachesItsField) {
  const Parsed parsed = Parse({"--temperature",
                               "0.5",
                               "--top-k",
                               "7",
                               "--top-p",
                               "0.75",
                               "--min-p",
                               "0.25",
                               "--typical-p",
                               "0.125",
                               "--repetition-penalty",
                               "1.5",
                               "--presence-penalty",
                               "-2",
                               "--frequency-penalty",
                               "3",
                               "--no-repeat-ngram-size",
                               "4",
                               "--logit-bias",
                               "5=-1.5",
                               "--logit-bias",
                               "6=100",
                               "--seed",
                               "18446744073709551615",
                               "--n",
                               "2",
                               "--best-of",
                               "3",
                               "--logprobs",
                               "20",
                               "--json"});
  EXPECT_EQ(parsed.error, "");
  const v1::SamplingParameters& sampling = parsed.request.sampling();
  EXPECT_EQ(sampling.temperature(), 0.5F);
  EXPECT_EQ(sampling.top_k(), 7U);
  EXPECT_EQ(sampling.top_p(), 0.75F);
  EXPECT_EQ(sampling.min_p(), 0.25F);
  EXPECT_EQ(sampling.typical_p(), 0.125F);
  EXPECT_EQ(sampling.repetition_penalty(), 1.5F);
  EXPECT_EQ(sampling.presence_penalty(), -2.0F);
  EXPECT_EQ(sampling.frequency_penalty(), 3.0F);
  EXPECT_EQ(sampling.no_repeat_ngram_size(), 4U);
  EXPECT_THAT(sampling.logit_bias(), UnorderedElementsAre(Pair(5, -1.5F), Pair(6, 100.0F)));
  EXPECT_EQ(sampling.seed(), UINT64_MAX);
  EXPECT_EQ(sampling.n(), 2U);
  EXPECT_EQ(sampling.best_of(), 3U);
  EXPECT_EQ(sampling.logprobs(), 20U);
}

TEST(GenerateFlagsTest, EveryOtherFlagReachesItsField) {
  const Parsed parsed = Parse({"--max-new-tokens",
                               "0",
                               "--min-new-tokens",
                               "3",
                               "--stop",
                               "a",
                               "--stop",
                               "b",
                               "--stop-id",
                               "8",
                               "--stop-id",
                               "9",
                               "--ignore-eos",
                               "--echo",
                               "--prompt-logprobs",
                               "0",
                               "--json",
                               "--priority",
                               "-100",
                               "--model",
                               "m",
                               "--request-id",
                               "r"});
  EXPECT_EQ(parsed.error, "");
  const v1::GenerateRequest& request = parsed.request;
  EXPECT_TRUE(request.stop().has_max_new_tokens());
  EXPECT_EQ(request.stop().min_new_tokens(), 3U);
  EXPECT_THAT(request.stop().strings(), ElementsAre("a", "b"));
  EXPECT_THAT(request.stop().ids(), ElementsAre(8, 9));
  EXPECT_TRUE(request.stop().ignore_eos());
  EXPECT_TRUE(request.echo());
  EXPECT_TRUE(request.has_prompt_logprobs());
  EXPECT_EQ(request.priority(), -100);
  EXPECT_EQ(request.model(), "m");
  EXPECT_EQ(request.request_id(), "r");
}

TEST(GenerateFlagsTest, ZeroesThatWereGivenAreSet) {
  const v1::GenerateRequest request =
      Parse({"--min-p", "0", "--presence-penalty", "0", "--logprobs", "0", "--json"}).request;
  EXPECT_TRUE(request.sampling().has_min_p());
  EXPECT_TRUE(request.sampling().has_presence_penalty());
  EXPECT_TRUE(request.sampling().has_logprobs());
  EXPECT_FALSE(request.sampling().has_frequency_penalty());
  EXPECT_FALSE(request.has_priority());
}

TEST(GenerateFlagsTest, NumbersBeyondTheirLimitsNameOptionValueAndLimit) {
  EXPECT_EQ(Parse({"--min-p", "1.5"}).error, "--min-p 1.5: must be 0 to 1");
  EXPECT_EQ(Parse({"--typical-p", "0"}).error, "--typical-p 0: must be above 0 and at most 1");
  EXPECT_EQ(Parse({"--repetition-penalty", "0"}).error,
            "--repetition-penalty 0: must be above 0 and at most 100");
  EXPECT_EQ(Parse({"--presence-penalty", "nan"}).error,
            "--presence-penalty nan: must be -100 to 100");
  EXPECT_EQ(Parse({"--frequency-penalty", "-101"}).error,
            "--frequency-penalty -101: must be -100 to 100");
  EXPECT_EQ(Parse({"--no-repeat-ngram-size", "-1"}).error,
            "--no-repeat-ngram-size -1: must be 0 to 4294967295");
  EXPECT_EQ(Parse({"--n", "0"}).error, "--n 0: must be 1 to 128");
  EXPECT_EQ(Parse({"--best-of", "129"}).error, "--best-of 129: must be 1 to 128");
  EXPECT_EQ(Parse({"--logprobs", "21"}).error, "--logprobs 21: must be 0 to 20");
  EXPECT_EQ(Parse({"--prompt-logprobs", "21"}).error, "--prompt-logprobs 21: must be 0 to 20");
  EXPECT_EQ(Parse({"--priority", "101"}).error, "--priority 101: must be -100 to 100");
  EXPECT_EQ(Parse({"--stop-id", "-1"}).error, "--stop-id -1: must be 0 to 2147483647");
}

TEST(GenerateFlagsTest, ABiasIsAnIdAndABias) {
  const std::string limit =
      ": must be ID=BIAS with an id of 0 to 2147483647 and a bias of -100 to 100";
  for (const std::string text :
       {"5", "=1", "5=", "-1=1", "2147483648=1", "5=101", "5=nan", "5=1=2", "x=1"}) {
    EXPECT_EQ(Parse({"--logit-bias", text}).error, "--logit-bias " + text + limit);
  }
  EXPECT_EQ(Parse({"--logit-bias", "5=1", "--logit-bias", "5=2"}).error,
            "--logit-bias 5=2: the id 5 comes twice");
  std::vector<std::string> many;
  for (int id = 0; id < 1025; ++id) {
    many.insert(many.end(), {"--logit-bias", std::to_string(id) + "=1"});
  }
  EXPECT_EQ(Parse(many).error, "--logit-bias comes 1025 times: must be at most 1024");
}

TEST(GenerateFlagsTest, FlagsThatContradictEachOtherAreNamed) {
  EXPECT_EQ(Parse({"--n", "3", "--best-of", "2"}).error,
            "--best-of 2: must be at least --n, which is 3");
  EXPECT_EQ(Parse({"--max-new-tokens", "0"}).error,
            "--max-new-tokens 0: must be 1 to 4294967295; 0 only with --prompt-logprobs");
  EXPECT_EQ(Parse({"--logprobs", "1"}).error,
            "--logprobs 1: needs --json; text has no place for log-probabilities");
  EXPECT_EQ(Parse({"--prompt-logprobs", "1"}).error,
            "--prompt-logprobs 1: needs --json; text has no place for log-probabilities");
}

TEST(GenerateFlagsTest, TextsThatCannotBeSentAreRefused) {
  EXPECT_EQ(Parse({"--tenant", std::string(129, 'x')}).error,
            "--tenant has 129 bytes: must have 1 to 128");
  EXPECT_EQ(Parse({"--tenant", "a\nb"}).error,
            "--tenant: byte 1 is not printable ASCII without spaces");
  EXPECT_EQ(Parse({"--tenant", "\xC3\xA9"}).error,
            "--tenant: byte 0 is not printable ASCII without spaces");
  EXPECT_EQ(Parse({"--request-id", std::string(129, 'x')}).error,
            "--request-id has 129 bytes: must have at most 128");
  EXPECT_EQ(Parse({"--model", "\xFF"}).error, "--model is not valid UTF-8");
  EXPECT_EQ(Parse({"--stop", "\xFF"}).error, "--stop is not valid UTF-8");
}

}  // namespace
}  // namespace pergola
