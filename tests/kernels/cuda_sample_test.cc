// Sampling on a CUDA device against kernels/sample.h on the same logits: the ids are the same, the
// log-probabilities within a bound; for vocabularies cut over ranks, and, under the emulator, in
// every order of blocks, warps and lanes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>

#include "kernels/cuda/row_sampler.h"
#include "kernels/sample_space.h"
#include "tests/kernels/cuda/device_array.h"
#include "tests/kernels/cuda_sample_stage.h"
#include "tests/kernels/random_sample_row.h"
#ifdef PERGOLA_CUDA_EMULATOR
#include "kernels/cuda/emulator/emulator.h"
#endif

namespace pergola {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kVocabularies[] = {1, 17, 257, 5003};

class CudaSampleTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    if (const char* why = WhyNoCuda()) GTEST_SKIP() << why;
#ifdef PERGOLA_CUDA_EMULATOR
    emulator::SetOrder(static_cast<emulator::Order>(GetParam()), 7);
#endif
  }

  // `change` makes of a row of everything the row that a test is about.
  using Change = std::function<void(RandomSampleRow&, SampleTask*)>;

  // Draws of random rows, cut over 1, 2 and 3 ranks: the ids of SampleTasks. Returns how many rows
  // of how many were left to the host.
  std::pair<int, int> Compare(const Change& change) {
    const int rows = GetParam() == 0 ? 32 : 6;
    std::pair<int, int> left_of(0, 0);
    for (int64_t vocabulary : kVocabularies) {
      const auto stream =
          MakeStream(CpuTarget::kPortable, 1, SampleWorkspaceBytes(vocabulary, kStageHistory));
      std::vector<std::unique_ptr<RandomSampleRow>> random;
      std::vector<SampleTask> expected;
      for (int i = 0; i < rows; ++i) {
        random.push_back(std::make_unique<RandomSampleRow>(
            vocabulary, static_cast<uint32_t>(1000 * vocabulary + i)));
        SampleTask task;
        task.draw = true;
        change(*random.back(), &task);
        task.row = random.back()->row;
        expected.push_back(task);
      }
      const std::vector<SampleTask> tasks = expected;
      SampleTasks(*stream, expected.data(), rows, vocabulary);
      for (int ranks : {1, 2, 3}) {
        Stage stage(vocabulary, ranks);
        std::vector<SampleTask> answered = tasks;
        int left = 0;
        stage.Run(&answered, &left);
        left_of.first += left;
        left_of.second += rows;
        for (int i = 0; i < rows; ++i) {
          Same(answered[i], expected[i],
               std::to_string(vocabulary) + " ids, " + std::to_string(ranks) + " ranks, row " +
                   std::to_string(i),
               vocabulary);
        }
      }
    }
    return left_of;
  }

  static void Same(const SampleTask& got, const SampleTask& expected, const std::string& where,
                   int64_t vocabulary) {
    EXPECT_EQ(got.valid, expected.valid) << where;
    EXPECT_EQ(got.id, expected.id) << where;
    if (!expected.valid || !got.valid) return;
    if (expected.draw && expected.logprobs) {
      SameLogprobs(got.id_logprobs, expected.id_logprobs, where, vocabulary);
    }
    if (expected.target >= 0) {
      SameLogprobs(got.target_logprobs, expected.target_logprobs, where, vocabulary);
    }
  }
  static void SameLogprob(float got, float expected, const std::string& where, int64_t vocabulary) {
    if (std::isinf(expected)) {
      EXPECT_EQ(got, expected) << where;
      return;
    }
    // Either rounds once to f32; before that the logarithms of the totals differ.
    const double bound =
        2 * std::abs(static_cast<double>(expected)) * kUnit + 2 * TotalError(vocabulary);
    EXPECT_NEAR(got, expected, bound) << where;
  }
  static void SameLogprobs(const TokenLogprobs& got, const TokenLogprobs& expected,
                           const std::string& where, int64_t vocabulary) {
    SameLogprob(got.logprob, expected.logprob, where, vocabulary);
    ASSERT_EQ(got.top_count, expected.top_count) << where;
    for (int32_t i = 0; i < got.top_count; ++i) {
      EXPECT_EQ(got.top_ids[i], expected.top_ids[i]) << where;
      SameLogprob(got.top_logprobs[i], expected.top_logprobs[i], where, vocabulary);
    }
  }

  // A row without filters or edits, at temperature 0.
  static void Plain(RandomSampleRow& random) {
    SampleRow plain;
    plain.logits = random.row.logits;
    plain.seed = random.row.seed;
    plain.index = random.row.index;
    plain.position = random.row.position;
    random.row = plain;
  }
};

TEST_P(CudaSampleTest, GreedyIsTheLowestIdOfTheLargestLogit) {
  const auto [left, rows] =
      Compare([](RandomSampleRow& random, SampleTask* task) { Plain(random); });
  EXPECT_EQ(left, 0) << "of " << rows;
}

TEST_P(CudaSampleTest, DrawsOverAllIdsAreThoseOfTheContract) {
  const auto [left, rows] = Compare([](RandomSampleRow& random, SampleTask* task) {
    Plain(random);
    const float temperatures[] = {1e-3F, 0.3F, 1, 5, 1e6F};
    random.row.temperature = temperatures[random.Pick(5)];
  });
  EXPECT_EQ(left, 0) << "of " << rows;
}

TEST_P(CudaSampleTest, DrawsAtTheEdgesOfTemperatureAreThoseOfTheContract) {
  Compare([](RandomSampleRow& random, SampleTask* task) {
    Plain(random);
    const float temperatures[] = {1e-45F, 1e-30F, 1e-12F, 1e-6F, 1e20F, 3e38F};
    random.row.temperature = temperatures[random.Pick(6)];
    if (random.Pick(4) == 0) random.logits[0] = 3.4e38F;
    if (random.Pick(4) == 0) random.logits.back() = -3.4e38F;
  });
}

TEST_P(CudaSampleTest, TopKIsNeverLeftToTheHost) {
  const auto [left, rows] = Compare([](RandomSampleRow& random, SampleTask* task) {
    const uint32_t top_k =
        random.Pick(4) == 0 ? kMaxCandidates : static_cast<uint32_t>(1 + random.Pick(100));
    Plain(random);
    random.row.temperature = 0.8F;
    random.row.top_k = top_k;
    if (random.Pick(2) == 0) random.row.top_p = random.Unit();
    if (random.Pick(3) == 0) random.row.min_p = random.Unit() * random.Unit();
    if (random.Pick(3) == 0) random.row.typical_p = random.Unit();
  });
  EXPECT_EQ(left, 0) << "of " << rows;
}

TEST_P(CudaSampleTest, TopPIsThatOfTheContract) {
  const auto [left, rows] = Compare([](RandomSampleRow& random, SampleTask* task) {
    Plain(random);
    random.row.temperature = 0.7F;
    random.row.top_p = random.Unit();
    if (random.Pick(3) == 0) random.row.min_p = random.Unit() * random.Unit();
    if (random.Pick(3) == 0) random.row.typical_p = random.Unit();
  });
  // Flat rows of 5,003 ids, whose prefix is longer than the candidates.
  EXPECT_LT(left, rows / 4) << "of " << rows;
}

TEST_P(CudaSampleTest, MinPIsThatOfTheContract) {
  const auto [left, rows] = Compare([](RandomSampleRow& random, SampleTask* task) {
    Plain(random);
    random.row.temperature = 0.7F;
    random.row.min_p = random.Unit() * random.Unit();
    if (random.Pick(3) == 0) random.row.typical_p = random.Unit();
  });
  EXPECT_LT(left, rows / 4) << "of " << rows;
}

TEST_P(CudaSampleTest, TypicalAloneIsThatOfTheContract) {
  Compare([](RandomSampleRow& random, SampleTask* task) {
    Plain(random);
    random.row.temperature = 0.9F;
    random.row.typical_p = random.Unit();
  });
}

TEST_P(CudaSampleTest, RowsOfEverythingAreThoseOfTheContract) {
  Compare([](RandomSampleRow& random, SampleTask* task) {});
}

TEST_P(CudaSampleTest, EditsAreThoseOfTheContract) {
  const auto [left, rows] = Compare([](RandomSampleRow& random, SampleTask* task) {
    random.row.temperature = random.Pick(2) == 0 ? 0.0F : 0.9F;
    random.row.top_k = 0;
    random.row.top_p = random.row.typical_p = 1;
    random.row.min_p = 0;
  });
  EXPECT_EQ(left, 0) << "of " << rows;
}

// The draws above may not notice a logit that is a little off: this looks at all of them.
TEST_P(CudaSampleTest, EditedLogitsAreThoseOfTheContractBitForBit) {
  constexpr int64_t kVocabulary = 101;
  const Range slice = {17, 90};
  EditLister lister(slice, kStageHistory);
  const TestCudaContext context;
  std::vector<uint8_t> memory(static_cast<size_t>(SampleSpace::Bytes(kVocabulary, kStageHistory)));
  const SampleSpace space = SampleSpace::Cut(memory.data(), kVocabulary);
  int edited = 0;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    RandomSampleRow random(kVocabulary, seed);
    SampleRow row = random.row;
    row.mask = nullptr;
    if (!ListsEdits(row)) continue;
    ++edited;
    EditLogits(row, kVocabulary, space);
    const std::vector<float> before(random.logits.begin() + slice.begin,
                                    random.logits.begin() + slice.end);
    const DeviceArray<float> logits(before), unedited(slice.size());
    std::vector<SampleEdit> edits(static_cast<size_t>(slice.size()));
    SampleEditRow edit_row;
    edit_row.logits = logits.data();
    edit_row.edit_count = static_cast<int32_t>(lister.List(row, edits.data()));
    EXPECT_LE(edit_row.edit_count, EditBound(row, slice.size()));
    edit_row.repetition_penalty = row.repetition_penalty;
    edit_row.presence_penalty = row.presence_penalty;
    edit_row.frequency_penalty = row.frequency_penalty;
    const DeviceArray<SampleEdit> device_edits(edits);
    const DeviceArray<SampleEditRow> rows(std::vector<SampleEditRow>{edit_row});
    const EditArgs args = {rows.data(), 1, device_edits.data(), unedited.data()};
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EditLogitsCuda(context, args);
    const std::vector<float> after = logits.Read();
    for (size_t i = 0; i < after.size(); ++i) {
      const float want = space.edited[static_cast<size_t>(slice.begin) + i];
      ASSERT_EQ(std::memcmp(&after[i], &want, sizeof(want)), 0)
          << "row " << seed << ", id " << slice.begin + static_cast<int64_t>(i) << ": " << after[i]
          << " instead of " << want;
    }
    RestoreLogitsCuda(context, args);
    const std::vector<float> restored = logits.Read();
    EXPECT_EQ(std::memcmp(restored.data(), before.data(), before.size() * sizeof(float)), 0);
  }
  EXPECT_GT(edited, 80);
}

TEST_P(CudaSampleTest, MasksOfIdsAndBitsAreThoseOfTheContract) {
  std::vector<std::unique_ptr<std::vector<int32_t>>> lists;
  const auto [left, rows] = Compare([&](RandomSampleRow& random, SampleTask* task) {
    const auto vocabulary = static_cast<int64_t>(random.logits.size());
    const uint8_t* bits = random.row.mask;
    Plain(random);
    random.row.mask = bits;
    random.row.temperature = random.Pick(2) == 0 ? 0.0F : 1.0F;
    random.row.top_k = random.Pick(2) == 0 ? 0 : 7;
    if (random.Pick(2) == 0) return;
    lists.push_back(std::make_unique<std::vector<int32_t>>());
    for (int i = random.Pick(9); i > 0; --i) {
      lists.back()->push_back(random.Pick(static_cast<int>(vocabulary)));
    }
    lists.back()->reserve(1);  // an empty list forbids all ids
    random.row.mask_ids = lists.back()->data();
    random.row.mask_id_count = static_cast<int64_t>(lists.back()->size());
  });
  EXPECT_EQ(left, 0) << "of " << rows;
}

TEST_P(CudaSampleTest, LogprobsOfDrawnAndGivenIdsAreWithinTheirBound) {
  Compare([](RandomSampleRow& random, SampleTask* task) {
    task->draw = random.Pick(4) != 0;
    task->logprobs = random.Pick(3) != 0;
    task->top = random.Pick(kMaxTopLogprobs + 1);
    const auto vocabulary = static_cast<int>(random.logits.size());
    if (!task->draw || random.Pick(3) == 0) task->target = random.Pick(vocabulary);
    task->target_top = random.Pick(kMaxTopLogprobs + 1);
  });
}

TEST_P(CudaSampleTest, NaNAndInfinityAnywhereAreNoToken) {
  const auto [left, rows] = Compare([](RandomSampleRow& random, SampleTask* task) {
    const float bad[] = {kNaN, -kNaN, kInfinity, -kInfinity};
    const auto at = static_cast<size_t>(random.Pick(static_cast<int>(random.logits.size())));
    random.logits[at] = bad[random.Pick(4)];
    if (random.Pick(4) == 0) std::fill(random.logits.begin(), random.logits.end(), -kInfinity);
    random.row.typical_p = 1;
    random.row.top_p = 1;
    random.row.min_p = 0;
    task->logprobs = random.Pick(2) == 0;
  });
  EXPECT_EQ(left, 0) << "of " << rows;
}

TEST_P(CudaSampleTest, NothingAllowedIsNoToken) {
  const std::vector<uint8_t> none(700, 0);
  const std::vector<float> logits = RandomValues(5003, 3);
  std::vector<SampleTask> tasks(3);
  for (size_t i = 0; i < tasks.size(); ++i) {
    tasks[i].draw = tasks[i].logprobs = true;
    tasks[i].row.logits = logits.data();
    tasks[i].row.mask = none.data();
    tasks[i].row.temperature = static_cast<float>(i);
  }
  tasks[2].row.top_k = 5;
  Stage stage(5003, 2);
  int left = 0;
  stage.Run(&tasks, &left);
  EXPECT_EQ(left, 0);
  for (const SampleTask& task : tasks) {
    EXPECT_FALSE(task.valid);
    EXPECT_EQ(task.id, -1);
  }
}

// More ids tie than a list holds: the device searches the row.
TEST_P(CudaSampleTest, ManyEqualLogitsAreCutAtTheLowestIds) {
  constexpr int64_t kVocabulary = 9001;
  std::vector<float> logits(kVocabulary, -0.0F);
  for (size_t i = 0; i < logits.size(); i += 3) logits[i] = 0.0F;
  logits[7000] = 1.5F;
  const auto stream = MakeStream(CpuTarget::kPortable, 1, SampleWorkspaceBytes(kVocabulary));
  std::vector<SampleTask> tasks;
  for (uint32_t top_k : {1U, 20U, 1024U}) {
    SampleTask task;
    task.row.logits = logits.data();
    task.row.temperature = 3;
    task.row.top_k = top_k;
    task.row.seed = 11;
    task.draw = task.logprobs = true;
    task.top = kMaxTopLogprobs;
    task.target = 8999;
    tasks.push_back(task);
  }
  std::vector<SampleTask> expected = tasks;
  SampleTasks(*stream, expected.data(), static_cast<int64_t>(tasks.size()), kVocabulary);
  for (int ranks : {1, 2}) {
    std::vector<SampleTask> answered = tasks;
    Stage stage(kVocabulary, ranks);
    int left = 0;
    stage.Run(&answered, &left);
    EXPECT_EQ(left, 0);
    for (size_t i = 0; i < tasks.size(); ++i) {
      Same(answered[i], expected[i], "task " + std::to_string(i), kVocabulary);
    }
  }
}

// Group maxima of several warps' threads each, and more parts than one block adds up at once.
TEST_P(CudaSampleTest, WideSlicesAreThoseOfTheContract) {
  constexpr int64_t kVocabulary = 70001;
  const std::vector<float> logits = RandomValues(kVocabulary, 12, 3.0F);
  const auto stream = MakeStream(CpuTarget::kPortable, 1, SampleWorkspaceBytes(kVocabulary));
  std::vector<SampleTask> tasks(4);
  for (SampleTask& task : tasks) {
    task.row.logits = logits.data();
    task.row.temperature = 0.8F;
    task.row.seed = 5;
    task.draw = task.logprobs = true;
    task.top = 20;
  }
  tasks[0].row.top_k = 1000;
  tasks[1].row.top_p = 0.3F;
  tasks[2].row.temperature = 0;
  std::vector<SampleTask> expected = tasks;
  SampleTasks(*stream, expected.data(), 4, kVocabulary);
  Stage stage(kVocabulary, 1);
  int left = 0;
  stage.Run(&tasks, &left);
  EXPECT_EQ(left, 0);
  for (size_t i = 0; i < tasks.size(); ++i) {
    Same(tasks[i], expected[i], "task " + std::to_string(i), kVocabulary);
  }
}

TEST_P(CudaSampleTest, WhatDoesNotFitIsLeftToTheHost) {
  const std::vector<float> logits = RandomValues(5003, 3);
  const std::vector<int32_t> history = {1, 2, 3, 1, 2, 4, 1, 2};
  std::vector<SampleTask> tasks(4);
  for (SampleTask& task : tasks) {
    task.draw = true;
    task.row.logits = logits.data();
    task.row.temperature = 1;
  }
  tasks[0].row.top_k = kMaxCandidates + 1;
  tasks[1].row.typical_p = 0.5F;
  for (int i : {2, 3}) {
    tasks[i].row.history = history.data();
    tasks[i].row.history_count = 8;
    tasks[i].row.repetition_penalty = 1.3F;
  }
  std::vector<SampleTask> expected = tasks;
  const auto stream = MakeStream(CpuTarget::kPortable, 1, SampleWorkspaceBytes(5003, 8));
  SampleTasks(*stream, expected.data(), 4, 5003);
  Stage stage(5003, 2, /*edits=*/15);  // one history of 8 has room
  int left = 0;
  stage.Run(&tasks, &left);
  EXPECT_EQ(left, 3);
  EXPECT_FALSE(stage.sampler(0).jobs(2).host);
  EXPECT_TRUE(stage.sampler(0).jobs(3).host);
  for (size_t i = 0; i < tasks.size(); ++i) {
    Same(tasks[i], expected[i], "task " + std::to_string(i), 5003);
  }
}

TEST_P(CudaSampleTest, ACallWithoutTasksDoesNothing) {
  Stage stage(17, 2);
  std::vector<SampleTask> none;
  int left = 0;
  stage.Run(&none, &left);
  EXPECT_EQ(stage.sampler(0).layout().bytes(), 0);
}

TEST_P(CudaSampleTest, ASliceTooWideIsRefused) {
  RowSamplerShape shape;
  shape.tasks = 1;
  shape.vocabulary = shape.widest_slice = kMaxSampleValues + 1;
  shape.slice = {0, kMaxSampleValues + 1};
  const auto created = RowSampler::Create(shape, CudaContext(), RowSamplerMemory());
  EXPECT_EQ(created.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(created.status().message().find("1048577"), absl::string_view::npos);
}

#ifdef PERGOLA_CUDA_EMULATOR
TEST_P(CudaSampleTest, AnswersAreTheSameBitsInEveryOrder) {
  const std::vector<float> logits = RandomValues(5003, 21, 2.0F);
  std::vector<SampleTask> tasks(3);
  for (SampleTask& task : tasks) {
    task.draw = task.logprobs = true;
    task.top = 5;
    task.row.logits = logits.data();
    task.row.temperature = 0.9F;
  }
  tasks[1].row.top_p = 0.9F;
  tasks[2].row.top_k = 30;
  std::vector<uint8_t> first;
  for (int order = 0; order < 3; ++order) {
    emulator::SetOrder(static_cast<emulator::Order>(order), 3);
    Stage stage(5003, 1);
    int left = 0;
    stage.Run(&tasks, &left);
    const AnswerLayout& layout = stage.sampler(0).layout();
    const uint8_t* answers = stage.sampler(0).host_answers();
    std::vector<uint8_t> bytes(answers, answers + layout.candidates_offset());
    for (int64_t job = 0; job < layout.jobs; ++job) {
      const auto& answer = reinterpret_cast<const SampleAnswer*>(answers)[job];
      const uint8_t* begin = answers + layout.candidates_offset() +
                             job * layout.stride * static_cast<int64_t>(sizeof(ValueAndId));
      bytes.insert(bytes.end(), begin, begin + answer.candidate_count * sizeof(ValueAndId));
    }
    if (order == 0) first = bytes;
    EXPECT_EQ(bytes, first);
  }
}
INSTANTIATE_TEST_SUITE_P(Orders, CudaSampleTest, testing::Values(0, 1, 2));
#else
INSTANTIATE_TEST_SUITE_P(Device, CudaSampleTest, testing::Values(0));
#endif

}  // namespace
}  // namespace pergola
