// What the flags of `pergola bench` mean together, and what is refused.
#include "client/bench/flags.h"

#include "client/bench/sweep.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The plan of a command line; a refusal while parsing fails the test.
absl::StatusOr<BenchPlan> Plan(const std::vector<std::string>& arguments) {
  CLI::App app;
  BenchFlags flags;
  AddBenchFlags(app, &flags);
  std::vector<const char*> argv = {"bench"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  try {
    app.parse(static_cast<int>(argv.size()), argv.data());
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }
  return MakeBenchPlan(flags);
}

std::string Refusal(const std::vector<std::string>& arguments) {
  return std::string(Plan(arguments).status().message());
}

TEST(BenchFlagsTest, DefaultsDependOnTheMode) {
  const BenchPlan closed = Plan({"--streams", "3"}).value();
  EXPECT_EQ(closed.mode, BenchMode::kClosed);
  EXPECT_EQ(closed.requests, 12U);
  EXPECT_EQ(closed.output_tokens, 128U);
  const BenchPlan open = Plan({"--rate", "2.5"}).value();
  EXPECT_EQ(open.mode, BenchMode::kOpen);
  EXPECT_EQ(open.requests, 100U);
  EXPECT_EQ(open.max_in_flight, 1024U);
  const BenchPlan users = Plan({"--users", "5"}).value();
  EXPECT_EQ(users.mode, BenchMode::kUsers);
  EXPECT_EQ(users.requests, 20U);
  EXPECT_EQ(users.output_tokens, 20U);
  EXPECT_EQ(users.thinking.min_s, 1);
  EXPECT_EQ(users.thinking.max_s, 5);
  const BenchPlan sweep = Plan({"--sweep"}).value();
  EXPECT_EQ(sweep.output_tokens, 100U);
  EXPECT_EQ(sweep.sweep_max_batch, 512U);
  EXPECT_THAT(sweep.sweep_contexts, ElementsAre(128));
}

TEST(BenchFlagsTest, ADurationAloneBoundsNoRequests) {
  EXPECT_EQ(Plan({"--duration-s", "3"}).value().requests, UINT64_MAX);
  const BenchPlan both = Plan({"--duration-s", "3", "--requests", "9"}).value();
  EXPECT_EQ(both.requests, 9U);
  EXPECT_EQ(both.duration_s, 3);
  EXPECT_EQ(Plan({}).value().duration_s, Load::kNever);
}

TEST(BenchFlagsTest, FlagsThatContradictEachOtherAreNamed) {
  EXPECT_EQ(Refusal({"--rate", "5", "--users", "2"}), "--users: not together with --rate");
  EXPECT_EQ(Refusal({"--streams", "5", "--rate", "2"}), "--rate: not together with --streams");
  EXPECT_EQ(Refusal({"--sweep", "--users", "2"}), "--sweep: not together with --users");
  EXPECT_EQ(Refusal({"--burst", "2"}), "--burst: needs --rate");
  EXPECT_EQ(Refusal({"--max-in-flight", "2"}), "--max-in-flight: needs --rate");
  EXPECT_EQ(Refusal({"--think-s", "1:2"}), "--think-s: needs --users");
  EXPECT_EQ(Refusal({"--sweep-max-batch", "2"}), "--sweep-max-batch: needs --sweep");
  EXPECT_EQ(Refusal({"--sweep-contexts", "2"}), "--sweep-contexts: needs --sweep");
  EXPECT_EQ(Refusal({"--sweep-repeats", "2"}), "--sweep-repeats: needs --sweep");
  EXPECT_EQ(Refusal({"--lengths", "sharegpt", "--output-tokens", "2"}),
            "--output-tokens: not together with --lengths sharegpt");
  for (const auto& [flag, value] :
       std::vector<std::pair<std::string, std::string>>{{"--prompt-tokens", "2"},
                                                        {"--lengths", "fixed"},
                                                        {"--requests", "2"},
                                                        {"--duration-s", "2"},
                                                        {"--balance", "round-robin"},
                                                        {"--slo-ttft-ms", "2"},
                                                        {"--slo-gap-ms", "2"}}) {
    EXPECT_EQ(Refusal({"--sweep", flag, value}), flag + ": not together with --sweep");
  }
  EXPECT_EQ(Refusal({"--sweep", "--mix"}), "--mix: not together with --sweep");
  EXPECT_EQ(Refusal({"--sweep", "--output-tokens", "1"}),
            "--output-tokens 1: must be at least 2 with --sweep");
}

TEST(BenchFlagsTest, ValuesBeyondTheirLimitsNameThem) {
  EXPECT_EQ(Refusal({"--rate", "0"}), "--rate 0: must be above 0 and at most 100000");
  EXPECT_EQ(Refusal({"--rate", "nan"}), "--rate nan: must be above 0 and at most 100000");
  EXPECT_EQ(Refusal({"--users", "0"}), "--users 0: must be 1 to 16384");
  EXPECT_EQ(Refusal({"--max-in-flight", "16385"}), "--max-in-flight 16385: must be 1 to 16384");
  EXPECT_EQ(Refusal({"--duration-s", "86401"}),
            "--duration-s 86401: must be above 0 and at most 86400");
  EXPECT_EQ(Refusal({"--sweep", "--sweep-max-batch", "4097"}),
            "--sweep-max-batch 4097: must be 1 to 4096");
  EXPECT_EQ(Refusal({"--lengths", "long"}), "--lengths long: must be fixed or sharegpt");
  EXPECT_EQ(Refusal({"--balance", "fair"}),
            "--balance fair: must be round-robin or least-in-flight");
  for (const char* think : {"1", "5:1", "1:2:3", "a:b", "-1:2", "1:3601", ":"}) {
    EXPECT_EQ(Refusal({"--users", "1", "--think-s", think}),
              std::string("--think-s ") + think +
                  ": must be MIN:MAX with seconds of 0 to 3600, the smaller first");
  }
  for (const char* contexts : {"0", "1,,2", "x", "1,16777217"}) {
    EXPECT_EQ(Refusal({"--sweep", "--sweep-contexts", contexts}),
              std::string("--sweep-contexts ") + contexts +
                  ": must be up to 64 numbers of 1 to 16777216 with commas between");
  }
}

TEST(BenchFlagsTest, AddressesAreSplitAtCommas) {
  EXPECT_THAT(SplitAddresses("a:1,b:2").value(), ElementsAre("a:1", "b:2"));
  EXPECT_THAT(SplitAddresses("a:1,").value(), ElementsAre("a:1", ""));
  EXPECT_TRUE(SplitAddresses("").value().empty());
  EXPECT_THAT(std::string(SplitAddresses(std::string(64, ',')).status().message()),
              HasSubstr("65 addresses: must be 1 to 64"));
}

TEST(SweepLimitsTest, BatchesDoubleUpToTheLargest) {
  EXPECT_THAT(SweepBatches(1), ElementsAre(1));
  EXPECT_THAT(SweepBatches(8), ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(SweepBatches(9), ElementsAre(1, 2, 4, 8, 9));
}

TEST(SweepLimitsTest, WhatCannotRunAtOnceIsToldBeforehand) {
  SweepLimits limits;
  limits.context_length = 256;
  SweepPoint point;
  point.context = 100;
  point.output_tokens = 28;
  point.batch = 4;
  EXPECT_EQ(WhyNot(limits, point), "");
  v1::StatusResponse status;
  for (const v1::GroupState state : {v1::GROUP_STATE_READY, v1::GROUP_STATE_LOST}) {
    v1::GroupStatus* group = status.add_groups();
    group->set_state(state);
    group->set_slots_total(4);
    group->set_blocks_total(32);
    group->set_block_tokens(16);
    group->set_load_ms(group->state() == v1::GROUP_STATE_READY ? 1500 : 9000);
  }
  AddStatus(status, &limits);
  EXPECT_EQ(limits.load_s, 1.5) << "of those that serve";
  EXPECT_EQ(WhyNot(limits, point), "") << "4 x 8 blocks are just there";
  point.output_tokens = 29;
  EXPECT_EQ(WhyNot(limits, point), "needs 36 blocks, the server has 32");
  point.batch = 5;
  EXPECT_EQ(WhyNot(limits, point), "the server has 4 slots");
  point.context = 256;
  EXPECT_EQ(WhyNot(limits, point), "285 tokens are above the context length of 256");
}

}  // namespace
}  // namespace pergola
