#include "client/launch_line.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

GroupOptions OneMachine() {
  GroupOptions options;
  options.model = "/models/m.gguf";
  options.coordinator_address = "127.0.0.1:4000";
  options.tensor_parallel = 2;
  options.pipeline_parallel = 2;
  return options;
}

std::string Line(const GroupOptions& options) {
  const auto command = GroupCommand(options);
  EXPECT_TRUE(command.ok()) << command.status();
  return command.ok() ? ShellLine(*command) : "";
}

TEST(LaunchLineTest, OneMachineUsesSharedMemoryOnlyAndTheTokenByName) {
  EXPECT_EQ(Line(OneMachine()),
            "mpirun -n 4 --bind-to none --oversubscribe -x PERGOLA_JOIN_TOKEN "
            "--mca btl self,vader --mca btl_vader_single_copy_mechanism none "
            "--mca oob_tcp_if_include lo pergola-worker --model /models/m.gguf "
            "--coordinator 127.0.0.1:4000 --group group-0 --tp 2 --pp 2 --log-level info");
}

TEST(LaunchLineTest, RemoteHostsGetTheirShareOfRanksBySlotAndTcp) {
  GroupOptions options = OneMachine();
  options.tensor_parallel = 8;
  options.hosts = {{"a", 16}, {"b", 16}};
  options.remote = true;
  const std::string line = Line(options);
  EXPECT_THAT(line, HasSubstr("-n 16 "));
  EXPECT_THAT(line, HasSubstr("--host a:8,b:8 --map-by slot"));
  EXPECT_THAT(line, HasSubstr("--mca btl self,vader,tcp"));
  EXPECT_THAT(line, Not(HasSubstr("oob_tcp_if_include")));
}

TEST(LaunchLineTest, RootMustBeAllowedExplicitly) {
  GroupOptions options = OneMachine();
  EXPECT_THAT(Line(options), Not(HasSubstr("--allow-run-as-root")));
  options.root = true;
  EXPECT_THAT(Line(options), HasSubstr("--allow-run-as-root"));
}

TEST(LaunchLineTest, ThreadsTraceAndFurtherArgumentsReachTheWorker) {
  GroupOptions options = OneMachine();
  options.threads = 3;
  options.dtype = "int8";
  options.device = "cuda";
  options.devices = "2,3,0,1";
  options.trace_file = "/traces/worker.json";
  options.worker_arguments = {"--block-tokens", "64"};
  const auto command = *GroupCommand(options);
  const auto worker = std::find(command.begin(), command.end(), "pergola-worker");
  const std::vector<std::string> tail(worker, command.end());
  EXPECT_THAT(tail, Contains("--threads"));
  EXPECT_THAT(ShellLine(tail), HasSubstr(" --dtype int8 --device cuda --devices 2,3,0,1 "));
  EXPECT_THAT(tail, Contains("/traces/worker.json"));
  EXPECT_EQ(tail.back(), "64");
}

TEST(LaunchLineTest, RefusesLayoutsOutOfBoundsWithTheValue) {
  for (const auto& [tp, pp] : std::vector<std::pair<int, int>>{
           {0, 1}, {-1, 1}, {1025, 1}, {1, 0}, {1, 4097}, {1024, 4096}}) {
    GroupOptions options = OneMachine();
    options.tensor_parallel = tp;
    options.pipeline_parallel = pp;
    const auto command = GroupCommand(options);
    EXPECT_EQ(command.status().code(), absl::StatusCode::kInvalidArgument) << tp << " " << pp;
  }
}

TEST(LaunchLineTest, RefusesDevicesThatAreNoListOrAreFewerThanTheRanks) {
  for (const auto& [devices, text] : std::vector<std::pair<std::string, std::string>>{
           {"0,1,x,3", "'x' is not a number from 0 to 63"},
           {"0,1,64,3", "'64' is not a number from 0 to 63"},
           {"0,1,-2,3", "'-2' is not a number from 0 to 63"},
           {"0,1,,3", "'' is not a number from 0 to 63"},
           {"0,1,2,1", "--devices is '0,1,2,1': 1 stands there twice"},
           {"0,1,2", "--devices is '0,1,2', 3 GPUs for the 4 ranks of a machine"}}) {
    GroupOptions options = OneMachine();
    options.devices = devices;
    const auto command = GroupCommand(options);
    EXPECT_EQ(command.status().code(), absl::StatusCode::kInvalidArgument) << devices;
    EXPECT_THAT(std::string(command.status().message()), HasSubstr(text));
  }
  GroupOptions options = OneMachine();
  options.devices = "0,1,2,3";
  options.device = "cpu";
  EXPECT_THAT(std::string(GroupCommand(options).status().message()),
              HasSubstr("--devices is set beside --device cpu"));
  // Two machines have two ranks each.
  options.device = "cuda";
  options.devices = "5,6";
  options.hosts = {{"a", 2}, {"b", 2}};
  EXPECT_THAT(Line(options), HasSubstr("--devices 5,6 "));
}

TEST(DealGroupsTest, GroupsOnOneMachineHaveGpusOfTheirOwn) {
  GroupOptions one = OneMachine();
  one.devices = "7,6,5,4,3,2,1,0";
  const auto groups = DealGroups(one, 2, {0, 1});
  ASSERT_TRUE(groups.ok()) << groups.status();
  EXPECT_EQ((*groups)[0].devices, "7,6,5,4");
  EXPECT_EQ((*groups)[1].devices, "3,2,1,0");
  EXPECT_EQ(DealGroups(one, 3, {0, 1}).status().message(),
            "--devices is '7,6,5,4,3,2,1,0', 8 GPUs for 3 groups of 4 ranks; name one for each");
}

TEST(LaunchLineTest, RefusesStagesThatDoNotDivideOverHosts) {
  GroupOptions options = OneMachine();
  options.pipeline_parallel = 3;
  options.hosts = {{"a", 8}, {"b", 8}};
  EXPECT_THAT(std::string(GroupCommand(options).status().message()), HasSubstr("--pp 3"));
}

TEST(DealGroupsTest, OneGroupIsAsItWasAsked) {
  const auto groups = DealGroups(OneMachine(), 1, {0, 1, 2, 3});
  ASSERT_TRUE(groups.ok());
  ASSERT_EQ(groups->size(), 1U);
  EXPECT_EQ(Line((*groups)[0]), Line(OneMachine()));
  EXPECT_THAT((*groups)[0].cpus, IsEmpty());
}

TEST(DealGroupsTest, GroupsOnOneMachineShareItsCpusAndThreads) {
  GroupOptions one = OneMachine();  // of 4 ranks
  one.trace_file = "/t/worker.json";
  std::vector<int> cpus(17);
  std::iota(cpus.begin(), cpus.end(), 10);
  const auto groups = DealGroups(one, 2, cpus);
  ASSERT_TRUE(groups.ok());
  ASSERT_EQ(groups->size(), 2U);
  EXPECT_THAT((*groups)[0].cpus, ElementsAre(10, 11, 12, 13, 14, 15, 16, 17));
  EXPECT_THAT((*groups)[1].cpus, ElementsAre(18, 19, 20, 21, 22, 23, 24, 25, 26));
  EXPECT_THAT(Line((*groups)[1]), HasSubstr("--group group-1 "));
  // 17 CPUs / (2 groups x 4 ranks).
  EXPECT_THAT(Line((*groups)[1]), HasSubstr("--threads 2 "));
  EXPECT_NE((*groups)[0].trace_file, (*groups)[1].trace_file);
}

TEST(DealGroupsTest, MoreRanksThanCpusGetAThreadEachAndMoreGroupsACpuEach) {
  const auto groups = DealGroups(OneMachine(), 3, {4, 6});
  ASSERT_TRUE(groups.ok());
  EXPECT_THAT((*groups)[0].cpus, ElementsAre(4));
  EXPECT_THAT((*groups)[1].cpus, ElementsAre(6));
  EXPECT_THAT((*groups)[2].cpus, ElementsAre(4));
  for (const GroupOptions& group : *groups) EXPECT_EQ(group.threads, 1);
}

TEST(DealGroupsTest, ThreadsThatWereGivenStay) {
  GroupOptions one = OneMachine();
  one.threads = 5;
  const auto groups = DealGroups(one, 2, {0, 1});
  ASSERT_TRUE(groups.ok());
  for (const GroupOptions& group : *groups) EXPECT_EQ(group.threads, 5);
}

TEST(DealGroupsTest, WithoutKnownCpusNoGroupIsBoundToAny) {
  const auto groups = DealGroups(OneMachine(), 2, {});
  ASSERT_TRUE(groups.ok());
  for (const GroupOptions& group : *groups) {
    EXPECT_THAT(group.cpus, IsEmpty());
    EXPECT_EQ(group.threads, 1);
  }
}

TEST(DealGroupsTest, HostsAreDealtEvenlyAndInOrder) {
  GroupOptions one = OneMachine();
  one.hosts = {{"a", 2}, {"b", 2}, {"c", 2}, {"d", 2}};
  const auto groups = DealGroups(one, 2, {0, 1});
  ASSERT_TRUE(groups.ok());
  EXPECT_THAT(Line((*groups)[0]), HasSubstr("--host a:2,b:2 "));
  EXPECT_THAT(Line((*groups)[1]), HasSubstr("--host c:2,d:2 "));
  // These are other machines; how many CPUs they have, their workers know.
  EXPECT_EQ((*groups)[1].threads, 0);
  EXPECT_THAT((*groups)[1].cpus, IsEmpty());
}

TEST(DealGroupsTest, RefusesHostsThatCannotBeDealtEvenlyWithBothNumbers) {
  GroupOptions one = OneMachine();
  one.hosts = {{"a", 4}, {"b", 4}};
  for (const int count : {3, 4}) {
    const auto groups = DealGroups(one, count, {0});
    EXPECT_EQ(groups.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(groups.status().message()),
                HasSubstr("--groups " + std::to_string(count) + " does not divide the 2 hosts"));
  }
}

TEST(DealGroupsTest, RefusesALayoutThatCannotBe) {
  GroupOptions one = OneMachine();
  one.tensor_parallel = 0;
  EXPECT_THAT(std::string(DealGroups(one, 2, {0}).status().message()), HasSubstr("--tp 0"));
}

TEST(LaunchLineTest, CoordinatorLineCarriesNoTokenButItsFile) {
  CoordinatorOptions options;
  options.model = "/m";
  options.listen = "127.0.0.1:1";
  options.internal_listen = "127.0.0.1:2";
  options.token_file = "/run/token";
  options.run_file = "/run/c.json";
  EXPECT_EQ(ShellLine(CoordinatorCommand(options)),
            "pergola-coordinator --model /m --listen 127.0.0.1:1 --internal-listen 127.0.0.1:2 "
            "--join-token-file /run/token --run-file /run/c.json --drain-timeout-ms 30000 "
            "--log-level info");
  options.http_listen = "127.0.0.1:3";
  EXPECT_THAT(ShellLine(CoordinatorCommand(options)), HasSubstr(" --http-listen 127.0.0.1:3 "));
}

TEST(LaunchLineTest, ShellLineQuotesWhatAShellWouldChange) {
  EXPECT_EQ(ShellLine({"a b", "", "it's", "$x"}), "'a b' '' 'it'\\''s' '$x'");
}

TEST(LaunchLineTest, FindsProgramsAlongThePathOnly) {
  std::string dir = ::testing::TempDir() + "/find_program.XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  std::ofstream(dir + "/tool") << "#!/bin/sh\n";
  EXPECT_FALSE(FindProgram("tool", dir).ok()) << "not executable yet";
  chmod((dir + "/tool").c_str(), 0700);
  EXPECT_EQ(*FindProgram("tool", "/nowhere::" + dir), dir + "/tool");
  EXPECT_FALSE(FindProgram("tool", "/nowhere").ok());
  EXPECT_FALSE(FindProgram("tool", "").ok());
  EXPECT_FALSE(FindProgram(dir, "").ok()) << "a directory is no program";
  unlink((dir + "/tool").c_str());
  rmdir(dir.c_str());
}

}  // namespace
}  // namespace pergola
