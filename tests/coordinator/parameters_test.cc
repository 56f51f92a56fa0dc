#include "coordinator/doors/sampling_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/limits.h"
#include "tests/coordinator/request_builder_fixture.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

class ParametersTest : public RequestBuilderTest {};

TEST_F(ParametersTest, MakesASequenceForEachOfBestOf) {
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

TEST_F(ParametersTest, RefusesSeveralGreedySequences) {
  request_.mutable_sampling()->set_n(2);
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("sampling.n: 2 sequences contradict greedy")));
  request_.mutable_sampling()->set_best_of(3);
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("sampling.best_of: 3 sequences contradict")));
}

TEST_F(ParametersTest, BoundsTheNumberOfSequences) {
  request_.mutable_sampling()->set_temperature(1);
  request_.mutable_sampling()->set_n(0);
  EXPECT_THAT(Refused(), ElementsAre("sampling.n: 0 is not in 1 to 128"));
  request_.mutable_sampling()->set_n(UINT32_MAX);
  EXPECT_THAT(Refused(), ElementsAre("sampling.n: 4294967295 is not in 1 to 128"));
  request_.mutable_sampling()->set_n(3);
  request_.mutable_sampling()->set_best_of(2);
  EXPECT_THAT(Refused(), ElementsAre("sampling.best_of: 2 is not in sampling.n, 3, to 128"));
}

TEST_F(ParametersTest, NamesEveryParameterOutOfItsRange) {
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

TEST_F(ParametersTest, ResolvesEverySamplingParameter) {
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

TEST_F(ParametersTest, TakesTheModelsPenaltiesAlsoWhereItIsGreedy) {
  parts_.defaults.do_sample = false;
  parts_.defaults.repetition_penalty = 1.1F;
  parts_.defaults.no_repeat_ngram_size = 4;
  parts_.defaults.min_p = 0.2F;
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.sampling.repetition_penalty(), 1.1F);
  EXPECT_EQ(sequence_.sampling.no_repeat_ngram_size(), 4U);
  EXPECT_EQ(sequence_.sampling.min_p(), 0) << "a filter counts only where the model samples";
}

TEST_F(ParametersTest, TakesTheModelsLengthsWhereTheRequestSaysNothing) {
  parts_.defaults.max_length = 30;
  ASSERT_EQ(Build().code(), 0);
  const auto prompt = static_cast<uint32_t>(sequence_.prompt_ids.size());
  EXPECT_EQ(sequence_.max_new_tokens, 30 - prompt) << "with the prompt";
  parts_.defaults.max_length = prompt;
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.max_new_tokens, kDefaultMaxNewTokens) << "no room in it, so it says nothing";
  parts_.defaults.max_new_tokens = 9;
  parts_.defaults.min_new_tokens = 5;
  parts_.defaults.eos_ids = {2};
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.max_new_tokens, 9U);
  EXPECT_EQ(sequence_.sampling.min_new_tokens(), 5U);
  request_.mutable_stop()->set_max_new_tokens(3);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.max_new_tokens, 3U);
  EXPECT_EQ(sequence_.sampling.min_new_tokens(), 3U) << "the model's minimum gives way";
  request_.mutable_stop()->set_min_new_tokens(0);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.sampling.min_new_tokens(), 0U);
}

TEST_F(ParametersTest, SuppressesWhatWouldEndTheStreamTooEarly) {
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

TEST_F(ParametersTest, KnowsHowManyTokensAStreamSurelyHas) {
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

TEST_F(ParametersTest, ScoresAPromptWithoutANewToken) {
  request_.mutable_stop()->set_max_new_tokens(0);
  EXPECT_THAT(Refused(), ElementsAre(HasSubstr("stop.max_new_tokens: 0 is not in 1 to")));
  request_.set_prompt_logprobs(3);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(sequence_.max_new_tokens, 0U);
  EXPECT_EQ(sequence_.prompt_logprobs, 3U);
}

TEST_F(ParametersTest, OnlyTheFirstSequenceScoresThePrompt) {
  request_.mutable_sampling()->set_temperature(1);
  request_.mutable_sampling()->set_n(2);
  request_.set_prompt_logprobs(0);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_TRUE(sequence_.prompt_logprobs.has_value());
  EXPECT_FALSE(built_.sequences[1].request.prompt_logprobs.has_value());
}

TEST_F(ParametersTest, EchoesThePromptsOwnText) {
  request_.set_echo(true);
  ASSERT_EQ(Build().code(), 0);
  EXPECT_EQ(built_.sequences[0].echo, "abc");
}

TEST_F(ParametersTest, AResumeIsNotSentTheEchoAgain) {
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

TEST_F(ParametersTest, ResumesEachSequenceThatHasNotFinished) {
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

TEST_F(ParametersTest, NamesWhatContradictsAResume) {
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
