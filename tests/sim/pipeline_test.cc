// How well the scheduler fills a pipeline, on a virtual clock.
#include <gtest/gtest.h>

#include "coordinator/engine/engine_core.h"
#include "tests/sim/sim_group.h"

namespace pergola::sim {
namespace {

struct Pipeline {
  VirtualClock clock;
  EngineCore core{EngineOptions(), 0, nullptr};
  std::shared_ptr<SimLink> link;
  uint64_t requests = 0;

  Pipeline(uint32_t stages, StageCost cost) {
    v1::Hello hello = MakeHello("g", stages);
    hello.set_vocabulary_size(1U << 20);
    hello.set_context_length(4096);
    hello.set_block_count(1024);
    hello.set_slot_count(64);
    hello.set_step_tokens(512);
    link = std::make_shared<SimLink>(hello, cost, &clock, [this](const v1::StepResult& result) {
      core.GroupResult("g", result, clock.now());
    });
    core.GroupAttached(1, hello, link, 0);
    core.ResultsConnected("g", 2, 0);
    core.Advance(0);
  }

  std::shared_ptr<Mailbox> Submit(uint32_t prompt, uint32_t max_new) {
    SequenceRequest request;
    request.prompt_ids.assign(prompt, static_cast<int32_t>(requests + 1));
    request.seed = ++requests;
    request.max_new_tokens = max_new;
    request.mailbox = std::make_shared<Mailbox>([] {});
    std::shared_ptr<Mailbox> mailbox = request.mailbox;
    core.Submit(requests, std::move(request), clock.now());
    return mailbox;
  }

  void RunUntilIdle() {
    core.Advance(clock.now());
    while (core.sequence_count() > 0) {
      ASSERT_NE(clock.next(), kNever);
      clock.Step();
      core.Advance(clock.now());
      ASSERT_EQ(link->error(), "");
    }
  }

  // The share of [from, to) in which `stage` computed.
  double Busy(size_t stage, TimeUs from, TimeUs to) const {
    TimeUs busy = 0;
    for (const auto& [start, end] : link->busy()[stage]) {
      busy += std::max<TimeUs>(0, std::min(end, to) - std::max(start, from));
    }
    return static_cast<double>(busy) / static_cast<double>(to - from);
  }
};

TEST(PipelineTest, KeepsBothOfTwoEqualStagesBusyWithEightStreams) {
  Pipeline pipeline(2, {1000, 50});
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
  Pipeline pipeline(4, {1000, 50});
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
  Pipeline pipeline(2, {1000, 200});
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
  Pipeline pipeline(1, {1000, 0});
  pipeline.Submit(5, 50);
  pipeline.RunUntilIdle();
  EXPECT_EQ(pipeline.link->max_in_flight(), 2U);
  const TimeUs to = pipeline.link->busy()[0].back().second;
  EXPECT_GE(pipeline.Busy(0, 1000, to), 0.999);
}

}  // namespace
}  // namespace pergola::sim
