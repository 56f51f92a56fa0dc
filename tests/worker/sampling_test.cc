// Every sampling parameter through plans: histories, prefix sharing, chunks, replays, scoring and
// log-probabilities, against the reference on the logits that the executor kept.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/sample.h"
#include "tests/worker/executor_fixture.h"
#include "tests/worker/thread_group.h"

namespace pergola {
namespace {

using testing::ElementsAreArray;

constexpr int64_t kVocabulary = 97;

struct Parameters {
  std::string name;
  std::function<void(v1::Sampling*)> set;
};
std::ostream& operator<<(std::ostream& out, const Parameters& parameters) {
  return out << parameters.name;
}

void SetBiases(v1::Sampling* sampling) {
  for (int32_t id : {3, 40, 96}) {
    v1::LogitBias* bias = sampling->add_logit_bias();
    bias->set_id(id);
    bias->set_bias(id == 40 ? -std::numeric_limits<float>::infinity() : 1.5F);
  }
}
void SetMinimum(v1::Sampling* sampling) {
  sampling->set_min_new_tokens(9);
  for (int32_t id = 0; id < 60; ++id) sampling->add_suppressed(id);
}
void SetEverything(v1::Sampling* sampling) {
  sampling->set_temperature(1.7F);
  sampling->set_top_k(60);
  sampling->set_top_p(0.95F);
  sampling->set_min_p(0.01F);
  sampling->set_typical_p(0.9F);
  sampling->set_repetition_penalty(1.3F);
  sampling->set_presence_penalty(0.4F);
  sampling->set_frequency_penalty(0.3F);
  sampling->set_no_repeat_ngram_size(2);
  sampling->set_logprobs(5);
  SetBiases(sampling);
  SetMinimum(sampling);
}

std::vector<Parameters> AllParameters() {
  return {
      {"greedy", [](v1::Sampling*) {}},
      {"repetition", [](v1::Sampling* s) { s->set_repetition_penalty(1.8F); }},
      {"presence", [](v1::Sampling* s) { s->set_presence_penalty(2); }},
      {"frequency", [](v1::Sampling* s) { s->set_frequency_penalty(-1); }},
      {"ngrams", [](v1::Sampling* s) { s->set_no_repeat_ngram_size(1); }},
      {"minimum", SetMinimum},
      {"biases", SetBiases},
      {"filters",
       [](v1::Sampling* s) {
         s->set_temperature(2);
         s->set_min_p(0.02F);
         s->set_typical_p(0.8F);
       }},
      {"everything", SetEverything},
  };
}

// The row of the token after `known`, from the start's own words.
struct ReferenceRow {
  ReferenceRow(const v1::SlotStart& start, const std::vector<int32_t>& known, const Row& logits) {
    const v1::Sampling& s = start.sampling();
    for (const v1::LogitBias& bias : s.logit_bias()) {
      bias_ids.push_back(bias.id());
      biases.push_back(bias.bias());
    }
    row.logits = logits.data();
    row.temperature = s.temperature();
    row.top_k = s.top_k();
    row.top_p = s.top_p();
    row.min_p = s.min_p();
    row.typical_p = s.typical_p();
    row.seed = start.seed();
    row.index = start.index();
    row.position = static_cast<uint32_t>(known.size());
    row.repetition_penalty = s.repetition_penalty();
    row.presence_penalty = s.presence_penalty();
    row.frequency_penalty = s.frequency_penalty();
    row.no_repeat_ngram_size = s.no_repeat_ngram_size();
    row.min_new_tokens = s.min_new_tokens();
    row.suppressed = s.suppressed().data();
    row.suppressed_count = s.suppressed_size();
    row.bias_ids = bias_ids.data();
    row.biases = biases.data();
    row.bias_count = static_cast<int64_t>(biases.size());
    row.history = known.data();
    row.history_count = static_cast<int64_t>(known.size());
    row.prompt_tokens = start.prompt_tokens();
  }
  std::vector<int32_t> bias_ids;
  std::vector<float> biases;
  SampleRow row;
};

v1::SlotStart* StartWith(const Parameters& parameters, uint32_t slot, int64_t prompt_tokens,
                         BuiltPlan* built) {
  v1::SlotStart* start = built->Start(slot, 0, 99);
  start->set_index(4);
  start->set_prompt_tokens(static_cast<uint32_t>(prompt_tokens));
  parameters.set(start->mutable_sampling());
  return start;
}

// How a sequence is brought to life and grown.
struct Way {
  int64_t chunk = 1000;  // of the prompt
  int64_t begin = 0;     // positions that already stand in blocks 0, 1, ...
  uint64_t first_plan = 1;
};

// Grows `known` to `length` ids in slot 2, with blocks 0 to 7. Each token is held against the
// reference, if the logits are kept.
std::vector<int32_t> Grow(ExecutorGroup& group, const Parameters& parameters,
                          std::vector<int32_t> known, int64_t prompt_tokens, size_t length,
                          const Way& way, bool kept,
                          std::vector<v1::Logprobs>* logprobs = nullptr) {
  v1::SlotStart start;
  auto computed = way.begin;
  uint64_t plan_id = way.first_plan;
  while (known.size() < length) {
    BuiltPlan built(plan_id);
    const bool first = plan_id == way.first_plan;
    if (first) {
      v1::SlotStart* made = StartWith(parameters, 2, prompt_tokens, &built);
      made->set_computed(static_cast<uint32_t>(way.begin));
      made->mutable_history()->Add(known.begin(), known.begin() + way.begin);
      start = *made;
    }
    ++plan_id;
    const auto end = std::min<int64_t>(static_cast<int64_t>(known.size()), computed + way.chunk);
    v1::Entry* entry = built.Add(2, {known.begin() + computed, known.begin() + end}, computed,
                                 first ? Blocks(0, 8) : std::vector<uint32_t>());
    computed = end;
    if (end < static_cast<int64_t>(known.size())) {
      entry->clear_logits_at();
      group.Execute(built.plan, built.ids);
      continue;
    }
    const auto results = group.Execute(built.plan, built.ids);
    EXPECT_EQ(results[0].ids_size(), 1);
    if (results[0].ids_size() != 1) return {};
    if (kept) {
      const Row logits = Copy(group.last().Logits(0));
      const ReferenceRow reference(start, known, logits);
      EXPECT_EQ(results[0].ids(0), SampleRef(reference.row, kVocabulary))
          << "position " << known.size();
    }
    if (logprobs != nullptr) {
      logprobs->insert(logprobs->end(), results[0].logprobs().begin(), results[0].logprobs().end());
    }
    known.push_back(results[0].ids(0));
  }
  return known;
}

class ParametersTest : public testing::TestWithParam<Parameters> {};

TEST_P(ParametersTest, TokensAreTheReferencesForPromptAndNewIds) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (const Device device : Devices()) {
    for (int tp : {1, 3}) {
      ExecutorGroup group(checkpoint, tp, 2, TinyOptions(), 2, device);
      group.KeepLogits(true);
      Grow(group, GetParam(), RandomIds(20), 20, 50, {}, true);
    }
  }
}

TEST_P(ParametersTest, LayoutsGiveTheSameTokens) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup single(checkpoint, 1, 1, TinyOptions());
  const auto expected = Grow(single, GetParam(), RandomIds(20), 20, 44, {}, false);
  for (int tp : {2, 3}) {
    ExecutorGroup group(checkpoint, tp, 1, TinyOptions(), 2);
    EXPECT_EQ(Grow(group, GetParam(), RandomIds(20), 20, 44, {}, false), expected) << "TP " << tp;
  }
}

TEST_P(ParametersTest, ChunksReplaysAndSharedPrefixesChangeNoToken) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 2, 1, TinyOptions());
  const auto prompt = RandomIds(40);
  std::vector<v1::Logprobs> expected_logprobs;
  const auto expected = Grow(group, GetParam(), prompt, 40, 64, {}, false, &expected_logprobs);
  Way chunks;
  chunks.chunk = 7;
  std::vector<v1::Logprobs> logprobs;
  EXPECT_EQ(Grow(group, GetParam(), prompt, 40, 64, chunks, false, &logprobs), expected);
  ASSERT_EQ(logprobs.size(), expected_logprobs.size());
  for (size_t i = 0; i < logprobs.size(); ++i) {
    EXPECT_EQ(logprobs[i].SerializeAsString(), expected_logprobs[i].SerializeAsString());
  }
  // Preempted after ten new ids: they come again with the prompt.
  const std::vector<int32_t> ten(expected.begin(), expected.begin() + 50);
  EXPECT_EQ(Grow(group, GetParam(), ten, 40, 64, chunks, false), expected);
  // The blocks still hold the sequence: it goes on from the end of the second one.
  Way shared;
  shared.begin = 32;
  EXPECT_EQ(Grow(group, GetParam(), prompt, 40, 64, shared, false), expected);
}

INSTANTIATE_TEST_SUITE_P(All, ParametersTest, testing::ValuesIn(AllParameters()),
                         [](const auto& test) { return test.param.name; });

TEST(SamplingTest, AnOldSlotsHistoryAndListsAreForgotten) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 1, 1, TinyOptions());
  const Parameters penalty = {"", [](v1::Sampling* s) { s->set_repetition_penalty(1.8F); }};
  const Parameters greedy = {"", [](v1::Sampling*) {}};
  const auto fresh = Grow(group, penalty, RandomIds(9), 9, 30, {}, false);
  const auto plain = Grow(group, greedy, RandomIds(9), 9, 30, {}, false);
  Grow(group, {"", SetEverything}, RandomIds(30, 5), 30, 70, {}, false);
  EXPECT_EQ(Grow(group, penalty, RandomIds(9), 9, 30, {}, false), fresh);
  EXPECT_EQ(Grow(group, greedy, RandomIds(9), 9, 30, {}, false), plain);
  EXPECT_NE(fresh, plain);
}

// Attention and MLP add nothing, so that no sum is cut over ranks and the logits are the same bits
// in every layout.
MemoryCheckpoint WithoutBranches() {
  MemoryCheckpoint checkpoint(TinySpec(), {});
  for (int64_t layer = 0; layer < TinySpec().layers; ++layer) {
    for (Role role : {Role::kAttentionOutput, Role::kDown}) {
      std::vector<uint8_t>& bytes = checkpoint.Bytes(role, layer);
      std::fill(bytes.begin(), bytes.end(), uint8_t{0});
    }
  }
  return checkpoint;
}

// Eight sequences of all parameters in two steps, some scored too.
std::vector<std::string> MixedResults(ExecutorGroup& group) {
  const auto parameters = AllParameters();
  std::vector<std::string> all;
  for (uint64_t plan_id : {1, 2}) {
    BuiltPlan built(plan_id);
    for (uint32_t slot = 0; slot < 8; ++slot) {
      const auto ids = RandomIds(10, slot);
      if (plan_id == 1) StartWith(parameters[slot + 1], slot, 5, &built);
      const int64_t from = plan_id == 1 ? 0 : 8;
      const int64_t to = plan_id == 1 ? 8 : 10;
      v1::Entry* entry = built.Add(slot, {ids.begin() + from, ids.begin() + to}, from,
                                   plan_id == 1 ? Blocks(slot, 1) : std::vector<uint32_t>());
      if (slot % 3 == 0) {
        BuiltPlan::WantAll(entry);
        entry->mutable_targets()->Add(ids.begin() + from, ids.begin() + to);
        entry->set_target_logprobs(slot);
      }
    }
    for (const v1::EntryResult& result : group.Execute(built.plan, built.ids)) {
      all.push_back(result.SerializeAsString());
    }
  }
  return all;
}

TEST(SamplingTest, AnyTensorParallelGivesTheSameBitsFromTheSameLogits) {
  const MemoryCheckpoint checkpoint = WithoutBranches();
  ExecutorOptions options = TinyOptions();
  options.slot_count = 8;
  ExecutorGroup single(checkpoint, 1, 1, options);
  const auto expected = MixedResults(single);
  for (int tp : {2, 3, 9}) {
    ExecutorGroup group(checkpoint, tp, 1, options, tp == 3 ? 3 : 1);
    EXPECT_EQ(MixedResults(group), expected) << "TP " << tp;
  }
}

TEST(SamplingTest, LogprobsAreOfTheModelsOwnDistribution) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (int tp : {1, 3}) {
    ExecutorGroup group(checkpoint, tp, 1, TinyOptions());
    group.KeepLogits(true);
    BuiltPlan built;
    StartWith({"", SetEverything}, 0, 10, &built);
    StartWith({"", [](v1::Sampling*) {}}, 1, 10, &built);
    BuiltPlan::WantAll(built.Add(0, RandomIds(10), 0, {0}));
    built.Add(1, RandomIds(10), 0, {1});
    const auto results = group.Execute(built.plan, built.ids);
    ASSERT_EQ(results[0].logprobs_size(), 10);
    EXPECT_EQ(results[1].logprobs_size(), 0) << "not asked for";
    for (int i = 0; i < 10; ++i) {
      const v1::Logprobs& given = results[0].logprobs(i);
      TokenLogprobs expected;
      ASSERT_TRUE(
          LogprobsRef(group.last().Logits(i).data(), kVocabulary, results[0].ids(i), 5, &expected));
      EXPECT_EQ(given.logprob(), expected.logprob);
      EXPECT_THAT(given.top_ids(), ElementsAreArray(expected.top_ids, 5));
      EXPECT_THAT(given.top_logprobs(), ElementsAreArray(expected.top_logprobs, 5));
    }
  }
}

// Log-probabilities of all ids of a prompt but the first, `chunk` tokens at a time.
std::vector<std::string> Score(ExecutorGroup& group, const std::vector<int32_t>& ids,
                               int64_t chunk) {
  std::vector<std::string> scores;
  const auto total = static_cast<int64_t>(ids.size());
  for (int64_t first = 0; first < total; first += chunk) {
    const int64_t end = std::min(total, first + chunk);
    BuiltPlan built(first + 1);
    if (first == 0) built.Start(1);
    v1::Entry* entry = built.Add(1, {ids.begin() + first, ids.begin() + end}, first,
                                 first == 0 ? Blocks(0, 8) : std::vector<uint32_t>());
    entry->clear_logits_at();
    const int64_t last_target = std::min(end + 1, total);
    entry->mutable_targets()->Add(ids.begin() + first + 1, ids.begin() + last_target);
    entry->set_target_logprobs(20);
    const auto results = group.Execute(built.plan, built.ids);
    EXPECT_EQ(results[0].ids_size(), 0);
    for (const v1::Logprobs& score : results[0].target_logprobs()) {
      scores.push_back(score.SerializeAsString());
    }
  }
  return scores;
}

TEST(SamplingTest, PromptsAreScoredInChunksOfAnySize) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto ids = RandomIds(90);  // the buffer of logits holds 64 rows
  for (int tp : {1, 2}) {
    ExecutorGroup group(checkpoint, tp, 1, TinyOptions());
    const auto whole = Score(group, ids, 90);
    ASSERT_EQ(whole.size(), 89U);
    EXPECT_EQ(Score(group, ids, 9), whole);
    EXPECT_EQ(Score(group, ids, 1), whole);
    const auto logits = LogitsInChunks(group, ids, 90);
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      TokenLogprobs expected;
      ASSERT_TRUE(LogprobsRef(logits[i].data(), kVocabulary, ids[i + 1], 20, &expected));
      v1::Logprobs score;
      ASSERT_TRUE(score.ParseFromString(whole[i]));
      EXPECT_EQ(score.logprob(), expected.logprob) << "position " << i + 1;
      EXPECT_THAT(score.top_ids(), ElementsAreArray(expected.top_ids, 20));
    }
  }
}

TEST(SamplingTest, ARowMayBeScoredAndDrawnFromAtOnce) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  ExecutorGroup group(checkpoint, 2, 1, TinyOptions());
  const auto ids = RandomIds(12);
  BuiltPlan apart;
  apart.Start(0);
  apart.Start(1);
  apart.Add(0, ids, 0, {0})->set_logits_at(0, 4);
  v1::Entry* scored = apart.Add(1, ids, 0, {1});
  scored->clear_logits_at();
  for (int32_t id = 0; id < 7; ++id) scored->add_targets(id);
  const auto expected = group.Execute(apart.plan, apart.ids);
  BuiltPlan both(2);
  both.Start(0);
  v1::Entry* entry = both.Add(0, ids, 0, {0});
  entry->set_logits_at(0, 4);
  entry->add_logits_at(11);
  *entry->mutable_targets() = scored->targets();
  const auto results = group.Execute(both.plan, both.ids);
  ASSERT_EQ(results[0].ids_size(), 2);
  EXPECT_EQ(results[0].ids(0), expected[0].ids(0));
  ASSERT_EQ(results[0].target_logprobs_size(), 7);
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(results[0].target_logprobs(i).SerializeAsString(),
              expected[1].target_logprobs(i).SerializeAsString());
  }
}

TEST(SamplingTest, NanEndsItsEntryOnly) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  const auto layout = MakeLayout(checkpoint.spec(), 1, 2, 1);
  ASSERT_TRUE(layout.ok());
  StreamOptions stream_options;
  stream_options.threads = 2;
  stream_options.workspace_bytes = 8 << 20;
  const auto stream = CpuStream::Create(stream_options);
  auto executor =
      StageExecutor::Load(checkpoint, *layout, TinyOptions(), *stream, nullptr, nullptr);
  ASSERT_TRUE(executor.ok()) << executor.status();
  BuiltPlan built;
  std::vector<float> hidden;
  for (uint32_t slot : {0U, 1U, 2U}) {
    StartWith({"", SetEverything}, slot, 3, &built);
    v1::Entry* entry = built.Add(slot, RandomIds(3, slot), 0, {slot});
    for (int32_t id : {4, 5, 6}) entry->add_targets(id);
    for (int i = 0; i < 3 * 32; ++i) {
      const bool bad = slot == 1 && i >= 64;  // the last row
      hidden.push_back(bad ? std::numeric_limits<float>::quiet_NaN()
                           : std::sin(static_cast<float>(i + slot)));
    }
  }
  std::vector<v1::EntryResult> results;
  ASSERT_TRUE((*executor)->Execute(built.plan, built.ids, hidden.data(), &results).ok());
  ASSERT_EQ(results.size(), 3U);
  for (size_t i : {0U, 2U}) {
    EXPECT_EQ(results[i].status(), v1::ENTRY_STATUS_OK);
    EXPECT_EQ(results[i].ids_size(), 1);
    EXPECT_EQ(results[i].logprobs_size(), 1);
    EXPECT_EQ(results[i].target_logprobs_size(), 3);
  }
  EXPECT_EQ(results[1].status(), v1::ENTRY_STATUS_NAN);
  EXPECT_EQ(results[1].ids_size() + results[1].logprobs_size() + results[1].target_logprobs_size(),
            0);
}

TEST(SamplingTest, NothingLeftToChooseEndsTheEntryAsNanDoes) {
  const MemoryCheckpoint checkpoint(TinySpec(), {});
  for (int tp : {1, 2}) {
    ExecutorGroup group(checkpoint, tp, 1, TinyOptions());
    BuiltPlan built;
    v1::SlotStart* start = built.Start(0);
    start->set_prompt_tokens(2);
    start->mutable_sampling()->set_min_new_tokens(1);
    start->mutable_sampling()->add_suppressed(7);
    built.Add(0, {1, 2}, 0, {0})->mutable_mask()->add_ids(7);
    const auto results = group.Execute(built.plan, built.ids);
    EXPECT_EQ(results[0].status(), v1::ENTRY_STATUS_NAN);
    EXPECT_EQ(results[0].ids_size(), 0);
  }
}

// Decode plans that name the token of the plan before, sent ahead, against plans that say its id.
class RunAheadTest : public testing::TestWithParam<std::tuple<int, int, Device>> {};

TEST_P(RunAheadTest, TokensByReferenceEnterTheHistory) {
  const auto [tp, pp, device] = GetParam();
  if (device == Device::kCuda && CudaDeviceCount() == 0) GTEST_SKIP() << "there is no CUDA device";
  constexpr int kTokens = 30;
  ExecutorOptions options;
  options.slot_count = 2;
  options.block_tokens = 16;
  options.step_tokens = 64;
  options.context_length = 128;
  const std::vector<int32_t> prompt = RandomIds(20, 3, 300);
  std::vector<std::vector<std::string>> runs;
  for (bool ahead : {false, true}) {
    ThreadGroup group(PERGOLA_TEST_DATA "/golden/tiny_text", tp, pp, options, device);
    std::vector<std::string> results;
    int32_t last = 0;
    const auto wait = [&] {
      const v1::StepResult result = group.Wait();
      ASSERT_EQ(result.entries(0).ids_size(), 1);
      last = result.entries(0).ids(0);
      results.push_back(result.entries(0).SerializeAsString());
    };
    for (int i = 0; i < kTokens; ++i) {
      BuiltPlan built(i + 1);
      if (i == 0) {
        StartWith({"", SetEverything}, 1, 20, &built);
        built.Add(1, prompt, 0, Blocks(0, 8));
      } else {
        v1::Entry* entry = built.Add(1, {last}, 19 + i);
        if (ahead) {
          entry->clear_ids();
          entry->mutable_from()->set_plan_id(i);
        }
      }
      group.Submit(built.plan);
      if (!ahead || i > pp) wait();
    }
    while (results.size() < kTokens) wait();
    runs.push_back(results);
  }
  EXPECT_EQ(runs[0], runs[1]);
}

INSTANTIATE_TEST_SUITE_P(
    TpByPp, RunAheadTest,
    testing::Values(std::tuple(1, 1, Device::kCpu), std::tuple(2, 1, Device::kCpu),
                    std::tuple(1, 2, Device::kCpu), std::tuple(2, 3, Device::kCpu),
                    std::tuple(1, 1, Device::kCuda), std::tuple(2, 1, Device::kCuda),
                    std::tuple(1, 2, Device::kCuda)));

}  // namespace
}  // namespace pergola
