#include "coordinator/doors/request_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/limits.h"
#include "tests/coordinator/request_builder_fixture.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

TEST_F(RequestBuilderTest, ResolvesEveryDefaultOfABareRequest) {
  ASSERT_EQ(Build().code(), 0);
  EXPECT_THAT(sequence_.prompt_ids, ElementsAre(kBos, 'a', 'b', 'c'));
  EXPECT_EQ(sequence_.max_new_tokens, kDefaultMaxNewTokens);
  EXPECT_EQ(sequence_.request_id, "made");
  EXPECT_THAT(sequence_.eos_ids, ElementsAre(kEos));
  EXPECT_EQ(sequence_.sampling.temperature(), 0);
  EXPECT_EQ(sequence_.sampling.top_p(), 1);
  EXPECT_EQ(seeds_drawn_, 0U) << "greedy needs no seed";
  EXPECT_NE(sequence_.text, nullptr);
}

TEST_F(RequestBuilderTest, TellsAllViolationsAtOnce) {
  request_.set_text("a\xff");
  request_.set_request_id(std::string(129, 'x'));
  request_.mutable_sampling()->set_temperature(-1);
  request_.mutable_sampling()->set_top_k(261);
  request_.mutable_sampling()->set_top_p(0);
  request_.mutable_stop()->set_max_new_tokens(0);
  request_.mutable_stop()->add_strings("");
  request_.mutable_stop()->add_strings("ok");
  request_.mutable_stop()->add_strings("\xc3");
  request_.mutable_stop()->add_ids(260);
  EXPECT_THAT(
      Refused(),
      UnorderedElementsAre(
          "text: invalid UTF-8 at byte 1", "request_id: 129 bytes exceed the limit of 128 bytes",
          "sampling.temperature: -1 is not in [0, 100]",
          "sampling.top_k: 261 exceeds the vocabulary size of 260",
          "sampling.top_p: 0 is not in (0, 1]",
          "stop.max_new_tokens: 0 is not in 1 to the context length of 4096",
          "stop.strings[0]: has 0 bytes; a stop string has 1 to 256",
          "stop.strings[2]: invalid UTF-8 at byte 0",
          "stop.ids: id 260 at [0] is not in 0 to the vocabulary size of 260 (exclusive)"));
}

TEST_F(RequestBuilderTest, RefusesNumbersThatAreNone) {
  request_.mutable_sampling()->set_temperature(std::nanf(""));
  request_.mutable_sampling()->set_top_p(std::nanf(""));
  EXPECT_THAT(Refused(), SizeIs(2));
  request_.mutable_sampling()->set_temperature(std::numeric_limits<float>::infinity());
  request_.mutable_sampling()->set_top_p(1.5F);
  EXPECT_THAT(Refused(), SizeIs(2));
}

TEST_F(RequestBuilderTest, PrefixesFieldsOfABatchItem) {
  inputs_.field_prefix = "requests[3].";
  request_.clear_prompt();
  EXPECT_THAT(Refused(), ElementsAre("requests[3].prompt: unset; set text or tokens"));
}

TEST_F(RequestBuilderTest, UnknownModelIsNotFound) {
  request_.set_model("gpt-5");
  const google::rpc::Status status = Build();
  EXPECT_EQ(status.code(), 5);
  EXPECT_EQ(status.message(), "model 'gpt-5' is not served; served is 'bytes'");
  request_.set_model("bytes");
  EXPECT_EQ(Build().code(), 0);
}

TEST_F(RequestBuilderTest, UsesPromptIdsAsTheyAre) {
  request_.mutable_tokens()->add_ids(7);
  request_.mutable_tokens()->add_ids(259);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_THAT(sequence_.prompt_ids, ElementsAre(7, 259));
  request_.mutable_tokens()->add_ids(-1);
  EXPECT_THAT(Refused(), ElementsAre("tokens.ids: id -1 at [2] is not in 0 to the vocabulary size "
                                     "of 260 (exclusive)"));
  request_.mutable_tokens()->clear_ids();
  EXPECT_THAT(Refused(), ElementsAre("tokens.ids: empty; at least 1 id is needed"));
}

TEST_F(RequestBuilderTest, RefusesATextWithoutTokens) {
  request_.set_text("");
  EXPECT_THAT(Refused(), ElementsAre("text: yields no token; at least 1 is needed"));
}

TEST_F(RequestBuilderTest, RefusesATextBeyondTheLimit) {
  request_.set_text(std::string(kMaxTextBytes + 1, 'x'));
  EXPECT_THAT(Refused(), ElementsAre("text: 4194305 bytes exceed the limit of 4194304 bytes"));
}

TEST_F(RequestBuilderTest, RefusesATokenizerIdBeyondTheHead) {
  inputs_.limits.vocabulary_size = 257;
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("text: id 257 at [0]")));
}

TEST_F(RequestBuilderTest, APromptMustLeaveRoomForOneToken) {
  request_.set_text(std::string(4095, 'x'));  // and BOS
  EXPECT_THAT(Refused(), ElementsAre("text: the prompt's 4096 tokens and 1 new token exceed the "
                                     "context length of 4096 tokens"));
  request_.set_text(std::string(4094, 'x'));
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.max_new_tokens, 1U);
}

TEST_F(RequestBuilderTest, PromptAndNewTokensMustFitTheContext) {
  request_.mutable_stop()->set_max_new_tokens(4093);
  EXPECT_THAT(Refused(),
              ElementsAre("stop.max_new_tokens: the prompt's 4 tokens and 4093 new tokens exceed "
                          "the context length of 4096 tokens; at most 4092 fit"));
  request_.mutable_stop()->set_max_new_tokens(4092);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.max_new_tokens, 4092U);
}

TEST_F(RequestBuilderTest, WhatNeverFitsTheKvCacheIsRefused) {
  inputs_.limits.kv_tokens = 32;
  request_.mutable_stop()->set_max_new_tokens(29);
  EXPECT_THAT(Refused(),
              ElementsAre(HasSubstr("exceed the KV cache of 32 tokens; at most 28 fit")));
  request_.mutable_stop()->clear_max_new_tokens();
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.max_new_tokens, 28U);
}

TEST_F(RequestBuilderTest, AbsurdMaxNewTokensDoNotWrapAround) {
  request_.mutable_stop()->set_max_new_tokens(UINT32_MAX);
  EXPECT_THAT(Refused(), ElementsAre("stop.max_new_tokens: 4294967295 is not in 1 to the context "
                                     "length of 4096"));
}

TEST_F(RequestBuilderTest, BoundsTheNumberOfStops) {
  for (uint32_t i = 0; i <= kMaxStopStrings; ++i) request_.mutable_stop()->add_strings("s");
  for (uint32_t i = 0; i <= kMaxStopIds; ++i) request_.mutable_stop()->add_ids(1);
  EXPECT_THAT(Refused(), ElementsAre("stop.strings: 17 strings exceed the limit of 16",
                                     "stop.ids: 65 ids exceed the limit of 64"));
}

TEST_F(RequestBuilderTest, IgnoreEosDropsTheModelsOwnStops) {
  request_.mutable_stop()->set_ignore_eos(true);
  request_.mutable_stop()->add_ids(9);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_THAT(sequence_.eos_ids, IsEmpty());
  EXPECT_THAT(sequence_.stop_ids, ElementsAre(9));
}

TEST_F(RequestBuilderTest, ModelDefaultsCountOnlyWhereItSamples) {
  parts_.defaults.temperature = 0.6F;
  parts_.defaults.top_k = 1000;  // more than there are
  parts_.defaults.top_p = 0.9F;
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.sampling.temperature(), 0);
  EXPECT_EQ(sequence_.sampling.top_k(), 0U);

  parts_.defaults.do_sample = true;
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.sampling.temperature(), 0.6F);
  EXPECT_EQ(sequence_.sampling.top_k(), 260U);
  EXPECT_EQ(sequence_.sampling.top_p(), 0.9F);
  EXPECT_EQ(sequence_.seed, 101U) << "drawn, because it samples and none was given";

  parts_.defaults.temperature.reset();
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.sampling.temperature(), 1) << "Hugging Face's own default";

  request_.mutable_sampling()->set_temperature(0);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.sampling.temperature(), 0);
}

TEST_F(RequestBuilderTest, DrawsNoSeedWhereOneIsGiven) {
  request_.mutable_sampling()->set_temperature(0.8F);
  request_.mutable_sampling()->set_seed(0);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.seed, 0U);
  EXPECT_EQ(seeds_drawn_, 0U);
}

TEST_F(RequestBuilderTest, LimitsOfTheGroupReplaceThoseOfTheFiles) {
  ServingLimits serving;
  serving.context_length = 64;
  serving.vocabulary_size = 300;
  serving.kv_tokens = 32;
  const RequestLimits limits = LimitsFor(parts_, serving);
  EXPECT_EQ(limits.context_length, 64U);
  EXPECT_EQ(limits.vocabulary_size, 300U);
  EXPECT_EQ(limits.kv_tokens, 32U);
  parts_.context_length = -5;
  EXPECT_EQ(LimitsFor(parts_, ServingLimits()).context_length, 0U);
}

class ResumeTest : public RequestBuilderTest {
 protected:
  ResumeTest() {
    request_.clear_prompt();
    v1::Resume& resume = *request_.mutable_resume();
    for (const int32_t id : std::vector<int32_t>{kBos, 'a', 'b'})
      resume.mutable_prompt()->add_ids(id);
    // "é" and the first byte of another.
    for (const int32_t id : std::vector<int32_t>{'x', 0xc3, 0xa9, 0xc3})
      resume.mutable_received()->add_ids(id);
    resume.set_text_bytes(3);
    resume.set_seed(77);
    resume.set_numerics_id("id");
  }
};

TEST_F(ResumeTest, CarriesWhatTheClientHas) {
  ASSERT_EQ(Build().code(), 0);
  EXPECT_THAT(sequence_.prompt_ids, ElementsAre(kBos, 'a', 'b'));
  EXPECT_THAT(sequence_.received_ids, ElementsAre('x', 0xc3, 0xa9, 0xc3));
  EXPECT_EQ(sequence_.received_text_bytes, 3U);
  EXPECT_EQ(sequence_.seed, 77U);
  EXPECT_EQ(sequence_.resume_numerics_id, "id");
}

TEST_F(ResumeTest, RefusesAHostileOneInEveryField) {
  request_.set_text("prompt as well");
  request_.mutable_sampling()->set_seed(78);
  v1::Resume& resume = *request_.mutable_resume();
  resume.mutable_prompt()->set_ids(0, -7);
  resume.mutable_received()->set_ids(1, 1 << 30);
  resume.set_numerics_id(std::string(129, 'f'));
  EXPECT_THAT(Refused(), UnorderedElementsAre(
                             "prompt: set together with resume; resume.prompt takes its place",
                             "resume.seed: 77 differs from sampling.seed, 78",
                             HasSubstr("resume.prompt.ids: id -7 at [0]"),
                             HasSubstr("resume.received.ids: id 1073741824 at [1]"),
                             "resume.numerics_id: 129 bytes exceed the limit of 128 bytes"));
}

TEST_F(ResumeTest, ReceivedTokensCountTowardsMaxNewTokens) {
  request_.mutable_stop()->set_max_new_tokens(4);
  EXPECT_EQ(Build().code(), 0) << "all tokens but not the last message may have arrived";
  request_.mutable_stop()->set_max_new_tokens(3);
  EXPECT_THAT(Refused(), ElementsAre("resume.received.ids: 4 received tokens exceed "
                                     "max_new_tokens, 3"));
}

TEST_F(ResumeTest, TextBytesAreBoundedByTheReceivedIds) {
  request_.mutable_resume()->set_text_bytes(4);
  EXPECT_THAT(Refused(), ElementsAre("resume.text_bytes: 4 exceed the 3 bytes of text that the "
                                     "received ids make"));
  request_.mutable_resume()->set_text_bytes(UINT64_MAX);
  EXPECT_THAT(Refused(), SizeIs(1));
  request_.mutable_resume()->set_text_bytes(2);
  EXPECT_THAT(Refused(), ElementsAre("resume.text_bytes: 2 splits a UTF-8 character"));
}

TEST_F(ResumeTest, NeedsAPrompt) {
  request_.mutable_resume()->clear_prompt();
  EXPECT_THAT(Refused(), ElementsAre("resume.prompt.ids: empty; at least 1 id is needed"));
}

}  // namespace
}  // namespace pergola
