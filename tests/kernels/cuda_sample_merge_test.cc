// When the ranks' answers suffice for a token, and when not: kernels/cuda/sample_merge.h on answers
// made by hand. cuda_sample_test.cc has those that devices give.
#include "kernels/cuda/sample_merge.h"

#include <cmath>
#include <cstring>

#include "gtest/gtest.h"
#include "kernels/sample_math.h"
#include "tests/kernels/kernel_test_util.h"

namespace pergola {
namespace {

constexpr int64_t kVocabulary = 1000;

// One job per rank, ranks of 500 ids.
class CudaSampleMergeTest : public testing::Test {
 protected:
  struct Slice {
    std::vector<ValueAndId> candidates;
    uint32_t flags = 0;
    double total = 0;
  };

  // False: the row is needed.
  bool Merge(const std::vector<Slice>& slices, SampleTask* task) {
    RankAnswers answers;
    answers.layout.jobs = 1;
    answers.layout.stride = 4;
    answers.vocabulary = kVocabulary;
    std::vector<std::vector<uint8_t>> bytes;
    std::vector<const uint8_t*> ranks;
    std::vector<Range> ranges;
    for (const Slice& slice : slices) {
      const auto first = static_cast<int64_t>(500 * ranges.size());
      ranges.push_back({first, first + 500});
      bytes.emplace_back(static_cast<size_t>(answers.layout.bytes()));
      SampleAnswer answer;
      answer.flags = slice.flags;
      answer.total = answer.log_total = slice.total;
      answer.candidate_count = static_cast<int32_t>(slice.candidates.size());
      answer.largest = -std::numeric_limits<float>::infinity();
      if (!slice.candidates.empty()) {
        answer.largest = slice.candidates[0].value;
        answer.id = slice.candidates[0].id;
        std::memcpy(&bytes.back()[sizeof(answer)], slice.candidates.data(),
                    slice.candidates.size() * sizeof(ValueAndId));
      }
      std::memcpy(bytes.back().data(), &answer, sizeof(answer));
    }
    for (const auto& rank : bytes) ranks.push_back(rank.data());
    answers.ranks = ranks;
    answers.slices = ranges;
    MergeSpace space(static_cast<int>(slices.size()));
    TaskJobs jobs;
    jobs.draw = 0;
    if (task->logprobs) jobs.logprobs = 0;
    task->draw = true;
    return MergeTask(answers, jobs, CpuTarget::kPortable, &space, task);
  }
};

TEST_F(CudaSampleMergeTest, GreedyTiesGoToTheLowestRank) {
  SampleTask task;
  ASSERT_TRUE(Merge({{{{2, 77}}}, {{{2, 501}}}}, &task));
  EXPECT_EQ(task.id, 77);
  ASSERT_TRUE(Merge({{{{1, 77}}}, {{{2, 501}}}}, &task));
  EXPECT_EQ(task.id, 501);
  ASSERT_TRUE(Merge({{{}, kAnswerAll}, {{{2, 501}}}}, &task));
  EXPECT_EQ(task.id, 501);
}

TEST_F(CudaSampleMergeTest, ARankThatSawNaNEndsTheRow) {
  SampleTask task;
  ASSERT_TRUE(Merge({{{{2, 77}}}, {{{1, 501}}, kAnswerInvalid}}, &task));
  EXPECT_FALSE(task.valid);
  EXPECT_EQ(task.id, -1);
}

TEST_F(CudaSampleMergeTest, NoFiniteIdOnAnyRankIsNoToken) {
  SampleTask task;
  ASSERT_TRUE(Merge({{{}, kAnswerAll}, {{}, kAnswerAll}}, &task));
  EXPECT_FALSE(task.valid);
}

TEST_F(CudaSampleMergeTest, ADrawThatOneRankMissedNeedsTheRow) {
  SampleTask task;
  task.row.temperature = 1;
  EXPECT_FALSE(Merge({{{{2, 77}}}, {{{1, 501}}, kAnswerMissed}}, &task));
  EXPECT_TRUE(Merge({{{{2, 77}}}, {{{1, 501}}}}, &task));
  EXPECT_TRUE(task.id == 77 || task.id == 501);
}

TEST_F(CudaSampleMergeTest, TopPIsCutWhereTheRunningSumIsClearOfItsBound) {
  SampleTask task;
  task.row.temperature = 1;
  task.row.top_p = 0.3F;  // of a total of 4: the second id's 2 is clear of 1.2
  const std::vector<Slice> slices = {{{{5, 10}, {5, 11}, {5, 12}}, 0, 4}};
  bool seen[13] = {};
  for (task.row.position = 0; task.row.position < 100; ++task.row.position) {
    ASSERT_TRUE(Merge(slices, &task));
    seen[task.id] = true;
  }
  EXPECT_TRUE(seen[10] && seen[11] && !seen[12]);
}

TEST_F(CudaSampleMergeTest, TopPInDoubtNeedsTheRow) {
  SampleTask task;
  task.row.temperature = 1;
  task.row.top_p = 0.5F;  // of 4: just the second id's 2
  EXPECT_FALSE(Merge({{{{5, 10}, {5, 11}, {5, 12}}, 0, 4}}, &task));
  // A total that is off by what it may be off does not change that; by more, it does.
  EXPECT_FALSE(Merge({{{{5, 10}, {5, 11}, {5, 12}}, 0, 4 * (1 + TotalError(kVocabulary))}}, &task));
  EXPECT_TRUE(Merge({{{{5, 10}, {5, 11}, {5, 12}}, 0, 4 * (1 + 1e-11)}}, &task));
}

TEST_F(CudaSampleMergeTest, TopPInDoubtIsExactWhereAllIdsAreKnown) {
  SampleTask task;
  task.row.temperature = 1;
  task.row.top_p = 0.5F;
  const std::vector<Slice> slices = {{{{5, 10}, {5, 11}}, kAnswerAll, 2},
                                     {{{5, 510}, {5, 511}}, kAnswerAll, 2}};
  for (task.row.position = 0; task.row.position < 50; ++task.row.position) {
    ASSERT_TRUE(Merge(slices, &task));
    EXPECT_LT(task.id, 500);
  }
}

TEST_F(CudaSampleMergeTest, WhereOneRanksListEndsNothingIsKnown) {
  SampleTask task;
  task.row.temperature = 1;
  task.row.top_k = 3;
  // The third id may be one that rank 0 did not list.
  EXPECT_FALSE(Merge({{{{5, 10}, {4, 11}}}, {{{1, 510}, {0, 511}}}}, &task));
  EXPECT_TRUE(Merge({{{{5, 10}, {4, 11}}, kAnswerAll}, {{{1, 510}, {0, 511}}}}, &task));
}

TEST_F(CudaSampleMergeTest, MinPNeedsACandidateBelowTheCut) {
  SampleTask task;
  task.row.temperature = 1;
  task.row.min_p = 0.5F;
  EXPECT_FALSE(Merge({{{{5, 10}, {4.9F, 11}}}}, &task));
  ASSERT_TRUE(Merge({{{{5, 10}, {4, 11}}}}, &task));
  EXPECT_EQ(task.id, 10);
}

TEST_F(CudaSampleMergeTest, TotalsOfTheRanksAddUpAtTheLargest) {
  SampleTask task;
  task.logprobs = true;
  ASSERT_TRUE(Merge({{{{1, 10}}, 0, 2}, {{{3, 510}}, 0, 5}}, &task));
  EXPECT_EQ(task.id, 510);
  // The largest logit's own weight is 1 of 5 + 2 e^-2.
  EXPECT_NEAR(task.id_logprobs.logprob, -std::log(5 + 2 * std::exp(-2.0)), 2 * kUnit);
}

TEST_F(CudaSampleMergeTest, WhatNoJobAnswersNeedsTheRow) {
  MergeSpace space(1);
  SampleTask task;
  TaskJobs jobs;
  jobs.host = true;
  EXPECT_FALSE(MergeTask(RankAnswers(), jobs, CpuTarget::kPortable, &space, &task));
}

}  // namespace
}  // namespace pergola
