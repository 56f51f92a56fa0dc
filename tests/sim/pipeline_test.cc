// How well the scheduler fills a pipeline, on a virtual clock.
#include <gtest/gtest.h>

#include "tests/sim/pipeline.h"

namespace pergola::sim {
namespace {

TEST(PipelineTest, KeepsBothOfTwoEqualStagesBusyWithEightStreams) {
  Pipeline pipeline(2, PerPlanAndRow(1000, 50));
  for (int i = 0; i < 8; ++i) pipeline.Submit(20, 100);
  pipeline.RunUntilIdle();
  // After the fill: from the first decode on the second stage to the last plan the first stage
  // gets.
  const auto& last = pipeline.link->busy()[1];
  const TimeUs from = last[1].second;
  const TimeUs to = pipeline.link->busy()[0].back().first;
  ASSERT_GT(to, from);
  EXPECT_GE(pipeline.Busy(0, from, to), 0.9);
  EXPECT_GE(pipeline.Busy(1, from, to), 0.9);
  EXPECT_LE(pipeline.link->max_in_flight(), 3U);
}

TEST(PipelineTest, KeepsFourStagesBusyWithSixteenStreamsThatArriveOneByOne) {
  Pipeline pipeline(4, PerPlanAndRow(1000, 50));
  for (int i = 0; i < 16; ++i) {
    pipeline.clock.At(i * 700, [&] { pipeline.Submit(30, 100); });
  }
  while (pipeline.clock.now() < 16 * 700) {
    pipeline.clock.Step();
    pipeline.core.Advance(pipeline.clock.now());
  }
  pipeline.RunUntilIdle();
  const TimeUs from = 40'000;
  const TimeUs to = pipeline.link->busy()[0].back().first - 40'000;
  ASSERT_GT(to, from);
  for (size_t stage = 0; stage < 4; ++stage) EXPECT_GE(pipeline.Busy(stage, from, to), 0.9);
}

TEST(PipelineTest, RebalancesMicroBatchesWhenOneOfThemEnds) {
  Pipeline pipeline(2, PerPlanAndRow(1000, 200));
  // The first four fill the first micro-batch and end early.
  for (int i = 0; i < 4; ++i) pipeline.Submit(60, 10);
  for (int i = 0; i < 4; ++i) pipeline.Submit(60, 200);
  pipeline.RunUntilIdle();
  const TimeUs to = pipeline.link->busy()[0].back().first;
  const TimeUs from = to / 2;
  EXPECT_GE(pipeline.Busy(0, from, to), 0.9);
  EXPECT_GE(pipeline.Busy(1, from, to), 0.9);
}

TEST(PipelineTest, RunsOneStreamAheadOfItsAnswersOnOneStage) {
  Pipeline pipeline(1, PerPlanAndRow(1000, 0));
  pipeline.Submit(5, 50);
  pipeline.RunUntilIdle();
  EXPECT_EQ(pipeline.link->max_in_flight(), 2U);
  const TimeUs to = pipeline.link->busy()[0].back().second;
  EXPECT_GE(pipeline.Busy(0, 1000, to), 0.999);
}

}  // namespace
}  // namespace pergola::sim
