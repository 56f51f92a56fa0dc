// Whether the simulation notices what it is there to notice: it runs against an engine with one
// seeded bug at a time (mutations.cmake) and must fail within kSeeds seeds. Each bug has a child
// process, because some end in a CHECK.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "base/log.h"
#include "tests/sim/simulation.h"

namespace pergola {

int g_mutation = 0;  // the bug that is on; 0: none

namespace {

constexpr uint64_t kSeeds = 500;
constexpr unsigned kMostSeconds = 100;

struct Mutation {
  int number;
  const char* what;
};

void PrintTo(const Mutation& mutation, std::ostream* out) {
  *out << mutation.what;
}

const Mutation kMutations[] = {
#include "mutation_names.inc"
};

enum ChildEnd { kNoticed = 10, kUnnoticed = 11 };

// In the child: never returns, not even by an exception.
[[noreturn]] void RunChild(int mutation) noexcept {
  if (std::freopen("/dev/null", "w", stdout) == nullptr) _exit(1);
  if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(1);
  alarm(kMostSeconds);  // a bug may also show by never coming to an end
  spdlog::set_level(spdlog::level::off);
  g_mutation = mutation;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    sim::Simulation simulation(seed);
    simulation.Run();
    if (testing::Test::HasFailure()) _exit(kNoticed);
  }
  _exit(kUnnoticed);
}

// Why the child ended.
std::string EndOf(int status) {
  if (WIFEXITED(status)) {
    if (WEXITSTATUS(status) == kNoticed) return "noticed";
    if (WEXITSTATUS(status) == kUnnoticed) return "unnoticed";
    return absl::StrCat("exit ", WEXITSTATUS(status));
  }
  return absl::StrCat("noticed: ", strsignal(WTERMSIG(status)));
}

std::string RunWith(int mutation) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) RunChild(mutation);
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) return "no child";
  return EndOf(status);
}

TEST(SimulationControlTest, NoticesNothingWithoutABug) {
  EXPECT_EQ(RunWith(0), "unnoticed");
}

class MutationTest : public testing::TestWithParam<Mutation> {};

TEST_P(MutationTest, IsNoticed) {
  const std::string end = RunWith(GetParam().number);
  EXPECT_EQ(end.substr(0, 7), "noticed") << end << " within " << kSeeds << " seeds";
  std::printf("%s: %s\n", GetParam().what, end.c_str());
}

INSTANTIATE_TEST_SUITE_P(Bugs, MutationTest, testing::ValuesIn(kMutations),
                         [](const testing::TestParamInfo<Mutation>& one) {
                           return absl::StrCat("Bug", one.param.number);
                         });

}  // namespace
}  // namespace pergola
