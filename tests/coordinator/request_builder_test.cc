#include "coordinator/doors/request_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/limits.h"
#include "tests/coordinator/served_model.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

class RequestBuilderTest : public ::testing::Test {
 protected:
  RequestBuilderTest() {
    request_.set_text("abc");
    inputs_.served = {&parts_, &tokenizer_};
    inputs_.limits = LimitsFor(parts_, ServingLimits());
    inputs_.request_id = "made";
    inputs_.draw_seed = [this] { return ++seeds_drawn_ + 100; };
  }

  google::rpc::Status Build() {
    built_ = BuiltRequest();
    google::rpc::Status status = BuildRequest(request_, inputs_, &built_);
    sequence_ = SequenceRequest();
    if (!built_.sequences.empty()) sequence_ = std::move(built_.sequences[0].request);
    return status;
  }

  std::vector<std::string> Refused() {
    const google::rpc::Status status = Build();
    EXPECT_EQ(status.code(), 3) << status.ShortDebugString();
    return ViolationsOf(status);
  }

  TextParts parts_ = ByteModelParts();
  ByteTokenizer tokenizer_;
  BuildInputs inputs_;
  v1::GenerateRequest request_;
  BuiltRequest built_;
  SequenceRequest sequence_;  // the first one built
  uint64_t seeds_drawn_ = 0;
};

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

TEST_F(RequestBuilderTest, MakesASequenceForEachOfBestOf) {
  request_.mutable_sampling()->set_temperature(1);
  request_.mutable_sampling()->set_n(2);
  request_.mutable_sampling()->set_best_of(3);
  ASSERT_EQ(Build().code(), 0);
  ASSERT_THAT(built_.sequences, SizeIs(3));
  EXPECT_EQ(built_.facts.n, 2U);
  EXPECT_EQ(built_.facts.best_of, 3U);
  EXPECT_FALSE(built_.facts.tell_logprobs);
  EXPECT_EQ(seeds_drawn_, 1U) << "one seed for all";
  const SequenceRequest& last = built_.sequences[2].request;
  EXPECT_EQ(last.index, 2U);
  EXPECT_EQ(last.seed, sequence_.seed);
  EXPECT_THAT(last.prompt_ids, ElementsAre(kBos, 'a', 'b', 'c'));
  EXPECT_NE(last.text, nullptr);
  ASSERT_NE(last.fork_group, nullptr);
  EXPECT_EQ(last.fork_group, sequence_.fork_group);
  EXPECT_TRUE(last.sampling.has_logprobs()) << "the choice needs them";
}

TEST_F(RequestBuilderTest, RefusesSeveralGreedySequences) {
  request_.mutable_sampling()->set_n(2);
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("sampling.n: 2 sequences contradict greedy")));
  request_.mutable_sampling()->set_best_of(3);
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("sampling.best_of: 3 sequences contradict")));
}

TEST_F(RequestBuilderTest, BoundsTheNumberOfSequences) {
  request_.mutable_sampling()->set_temperature(1);
  request_.mutable_sampling()->set_n(0);
  EXPECT_THAT(Refused(), ElementsAre("sampling.n: 0 is not in 1 to 128"));
  request_.mutable_sampling()->set_n(UINT32_MAX);
  EXPECT_THAT(Refused(), ElementsAre("sampling.n: 4294967295 is not in 1 to 128"));
  request_.mutable_sampling()->set_n(3);
  request_.mutable_sampling()->set_best_of(2);
  EXPECT_THAT(Refused(), ElementsAre("sampling.best_of: 2 is not in sampling.n, 3, to 128"));
}

TEST_F(RequestBuilderTest, NamesEveryParameterOutOfItsRange) {
  v1::SamplingParameters& sampling = *request_.mutable_sampling();
  sampling.set_min_p(-0.1F);
  sampling.set_typical_p(0);
  sampling.set_repetition_penalty(0);
  sampling.set_presence_penalty(101);
  sampling.set_frequency_penalty(std::nanf(""));
  sampling.set_no_repeat_ngram_size(4097);
  (*sampling.mutable_logit_bias())[260] = 1;
  (*sampling.mutable_logit_bias())[5] = -101;
  sampling.set_logprobs(21);
  request_.set_prompt_logprobs(22);
  request_.set_priority(-101);
  inputs_.limits.context_length = 4096;
  EXPECT_THAT(
      Refused(),
      UnorderedElementsAre(
          "sampling.min_p: -0.1 is not in [0, 1]", "sampling.typical_p: 0 is not in (0, 1]",
          "sampling.repetition_penalty: 0 is not in (0, 100]",
          "sampling.presence_penalty: 101 is not in [-100, 100]",
          "sampling.frequency_penalty: nan is not in [-100, 100]",
          "sampling.no_repeat_ngram_size: 4097 exceeds the context length of 4096",
          "sampling.logit_bias[260]: the id is not in 0 to the vocabulary size of 260 "
          "(exclusive)",
          "sampling.logit_bias[5]: -101 is not in [-100, 100]",
          "sampling.logprobs: 21 exceeds the limit of 20",
          "prompt_logprobs: 22 exceeds the limit of 20", "priority: -101 is not in -100 to 100"));
}

TEST_F(RequestBuilderTest, ResolvesEverySamplingParameter) {
  v1::SamplingParameters& sampling = *request_.mutable_sampling();
  sampling.set_temperature(0.5F);
  sampling.set_min_p(0.1F);
  sampling.set_typical_p(0.9F);
  sampling.set_repetition_penalty(1.2F);
  sampling.set_presence_penalty(-1);
  sampling.set_frequency_penalty(2);
  sampling.set_no_repeat_ngram_size(3);
  (*sampling.mutable_logit_bias())[9] = 1;
  (*sampling.mutable_logit_bias())[5] = -2;
  sampling.set_logprobs(4);
  ASSERT_EQ(Build().code(), 0);
  const v1::Sampling& resolved = sequence_.sampling;
  EXPECT_EQ(resolved.min_p(), 0.1F);
  EXPECT_EQ(resolved.typical_p(), 0.9F);
  EXPECT_EQ(resolved.repetition_penalty(), 1.2F);
  EXPECT_EQ(resolved.presence_penalty(), -1);
  EXPECT_EQ(resolved.frequency_penalty(), 2);
  EXPECT_EQ(resolved.no_repeat_ngram_size(), 3U);
  ASSERT_EQ(resolved.logit_bias_size(), 2);
  EXPECT_EQ(resolved.logit_bias(0).id(), 5) << "ascending";
  EXPECT_EQ(resolved.logit_bias(0).bias(), -2);
  EXPECT_EQ(resolved.logprobs(), 4U);
  EXPECT_TRUE(built_.facts.tell_logprobs);
}

TEST_F(RequestBuilderTest, TakesTheModelsPenaltiesAlsoWhereItIsGreedy) {
  parts_.defaults.do_sample = false;
  parts_.defaults.repetition_penalty = 1.1F;
  parts_.defaults.no_repeat_ngram_size = 4;
  parts_.defaults.min_p = 0.2F;
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.sampling.repetition_penalty(), 1.1F);
  EXPECT_EQ(sequence_.sampling.no_repeat_ngram_size(), 4U);
  EXPECT_EQ(sequence_.sampling.min_p(), 0) << "a filter counts only where the model samples";
}

TEST_F(RequestBuilderTest, SuppressesWhatWouldEndTheStreamTooEarly) {
  request_.mutable_stop()->set_min_new_tokens(7);
  request_.mutable_stop()->add_ids(9);
  request_.mutable_stop()->add_ids(4);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.sampling.min_new_tokens(), 7U);
  EXPECT_THAT(sequence_.sampling.suppressed(), ElementsAre(4, 9, kEos));
  EXPECT_EQ(sequence_.least_new_tokens, 7U);
  request_.mutable_stop()->set_max_new_tokens(6);
  EXPECT_THAT(Refused(), ElementsAre("stop.min_new_tokens: 7 exceeds max_new_tokens, 6"));
}

TEST_F(RequestBuilderTest, KnowsHowManyTokensAStreamSurelyHas) {
  request_.mutable_stop()->set_max_new_tokens(50);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.least_new_tokens, 1U);
  request_.mutable_stop()->set_ignore_eos(true);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.least_new_tokens, 50U) << "nothing stops it earlier";
  request_.mutable_stop()->add_strings("x");
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.least_new_tokens, 1U);
}

TEST_F(RequestBuilderTest, ScoresAPromptWithoutANewToken) {
  request_.mutable_stop()->set_max_new_tokens(0);
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("stop.max_new_tokens: 0 is not in 1 to")));
  request_.set_prompt_logprobs(3);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.max_new_tokens, 0U);
  EXPECT_EQ(sequence_.prompt_logprobs, 3U);
}

TEST_F(RequestBuilderTest, OnlyTheFirstSequenceScoresThePrompt) {
  request_.mutable_sampling()->set_temperature(1);
  request_.mutable_sampling()->set_n(2);
  request_.set_prompt_logprobs(0);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_TRUE(sequence_.prompt_logprobs.has_value());
  EXPECT_FALSE(built_.sequences[1].request.prompt_logprobs.has_value());
}

TEST_F(RequestBuilderTest, EchoesThePromptsOwnText) {
  request_.set_echo(true);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(built_.sequences[0].echo, "abc");
}

TEST_F(RequestBuilderTest, AResumeIsNotSentTheEchoAgain) {
  request_.clear_text();
  request_.set_echo(true);
  v1::Resume& resume = *request_.mutable_resume();
  for (const char c : {'a', 'b', 'c'}) resume.mutable_prompt()->add_ids(c);
  resume.mutable_received()->add_ids('x');
  resume.set_text_bytes(2);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(built_.sequences[0].echo, "c");
  EXPECT_EQ(sequence_.received_text_bytes, 0U);
  resume.set_text_bytes(4);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(built_.sequences[0].echo, "");
  EXPECT_EQ(sequence_.received_text_bytes, 1U);
  resume.set_text_bytes(5);
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("resume.text_bytes: 5 exceed the 4 bytes")));
}

TEST_F(RequestBuilderTest, ResumesEachSequenceThatHasNotFinished) {
  request_.clear_text();
  request_.mutable_sampling()->set_temperature(1);
  request_.mutable_sampling()->set_n(3);
  v1::Resume& resume = *request_.mutable_resume();
  resume.mutable_prompt()->add_ids('a');
  resume.set_finished(true);
  v1::Received& second = *resume.add_others();
  second.mutable_ids()->add_ids('x');
  second.mutable_ids()->add_ids('y');
  second.set_text_bytes(1);
  ASSERT_EQ(Build().code(), 0);
  ASSERT_THAT(built_.sequences, SizeIs(2));
  EXPECT_EQ(sequence_.index, 1U);
  EXPECT_THAT(sequence_.received_ids, ElementsAre('x', 'y'));
  EXPECT_EQ(sequence_.received_text_bytes, 1U);
  EXPECT_EQ(built_.sequences[1].request.index, 2U);
  EXPECT_THAT(built_.sequences[1].request.received_ids, IsEmpty());
  second.set_finished(true);
  resume.add_others()->set_finished(true);
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("resume: says that every sequence has finished")));
  resume.add_others();
  EXPECT_THAT(Refused(), ElementsAre("resume.others: 3 do not go with n 3 sequences"));
}

TEST_F(RequestBuilderTest, NamesWhatContradictsAResume) {
  request_.clear_text();
  request_.mutable_sampling()->set_temperature(1);
  request_.mutable_sampling()->set_best_of(2);
  request_.set_prompt_logprobs(1);
  request_.mutable_resume()->mutable_prompt()->add_ids('a');
  EXPECT_THAT(Refused(),
              UnorderedElementsAre(HasSubstr("resume: set together with best_of above n"),
                                   HasSubstr("prompt_logprobs: set together with resume")));
}

}  // namespace
}  // namespace pergola
