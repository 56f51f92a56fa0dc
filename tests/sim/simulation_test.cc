#include "tests/sim/simulation.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "base/log.h"

namespace pergola::sim {
namespace {

// Each part runs 100 seeds. A failure prints its seed; RunSeed below with that number shows it
// alone.
class SimulationTest : public testing::TestWithParam<uint64_t> {};

TEST_P(SimulationTest, EveryStreamIsExactThroughLossShortageAndCancellation) {
  spdlog::set_level(spdlog::level::off);
  uint64_t finished = 0;
  uint64_t replays = 0;
  uint64_t preemptions = 0;
  uint64_t overrun = 0;
  uint64_t hits = 0;
  uint64_t forks = 0;
  uint64_t pauses = 0;
  uint64_t slow_ends = 0;
  uint64_t refusals = 0;
  for (uint64_t seed = GetParam() * 100; seed < GetParam() * 100 + 100; ++seed) {
    Simulation simulation(seed);
    simulation.Run();
    if (HasFailure()) {
      std::printf("failed with seed %llu\n", static_cast<unsigned long long>(seed));
      return;
    }
    const v1::StatusResponse status = simulation.status();
    finished += simulation.finished();
    replays += status.replays();
    preemptions += status.preemptions();
    overrun += status.overrun_tokens();
    hits += status.prefix_hit_tokens();
    forks += status.forks();
    pauses += status.pauses();
    slow_ends += status.slow_readers_ended();
    refusals += simulation.refusals();
  }
  spdlog::set_level(spdlog::level::info);
  std::printf(
      "finished %llu, replays %llu, preemptions %llu, overrun tokens %llu, prefix hit tokens %llu, "
      "forks %llu, pauses %llu, slow readers ended %llu, refusals %llu\n",
      static_cast<unsigned long long>(finished), static_cast<unsigned long long>(replays),
      static_cast<unsigned long long>(preemptions), static_cast<unsigned long long>(overrun),
      static_cast<unsigned long long>(hits), static_cast<unsigned long long>(forks),
      static_cast<unsigned long long>(pauses), static_cast<unsigned long long>(slow_ends),
      static_cast<unsigned long long>(refusals));
  // A simulation in which nothing happens proves nothing.
  EXPECT_GT(finished, 500U);
  EXPECT_GT(replays, 50U);
  EXPECT_GT(preemptions, 50U);
  EXPECT_GT(overrun, 50U);
  EXPECT_GT(hits, 500U);
  EXPECT_GT(forks, 50U);
  EXPECT_GT(pauses, 50U);
  EXPECT_GT(slow_ends, 5U);
  EXPECT_GT(refusals, 50U);
}

// For a seed that failed: PERGOLA_SIM_SEED=n sim_tests --gtest_also_run_disabled_tests
// --gtest_filter=*OneSeed
TEST(SimulationSeedTest, DISABLED_OneSeed) {
  const char* seed = std::getenv("PERGOLA_SIM_SEED");
  ASSERT_NE(seed, nullptr) << "set PERGOLA_SIM_SEED";
  spdlog::set_level(spdlog::level::debug);
  Simulation simulation(std::strtoull(seed, nullptr, 10));
  simulation.Run();
}

// As many seeds as one likes, for scripts/simulate: PERGOLA_SIM_SEED=first PERGOLA_SIM_COUNT=n
// sim_tests
// --gtest_also_run_disabled_tests --gtest_filter=*ManySeeds.
TEST(SimulationSeedTest, DISABLED_ManySeeds) {
  const char* first = std::getenv("PERGOLA_SIM_SEED");
  const char* count = std::getenv("PERGOLA_SIM_COUNT");
  ASSERT_TRUE(first != nullptr && count != nullptr) << "set PERGOLA_SIM_SEED and _COUNT";
  spdlog::set_level(spdlog::level::off);
  const uint64_t from = std::strtoull(first, nullptr, 10);
  for (uint64_t seed = from; seed < from + std::strtoull(count, nullptr, 10); ++seed) {
    Simulation simulation(seed);
    simulation.Run();
    ASSERT_FALSE(HasFailure()) << "failed with seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimulationTest, testing::Range<uint64_t>(0, 20));

}  // namespace
}  // namespace pergola::sim
