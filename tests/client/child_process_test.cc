#include "client/child_process.h"

#include <poll.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::ElementsAre;

// Starts, reads everything, and returns the wait status.
int RunToEnd(const std::vector<std::string>& argv, std::vector<std::string>* lines) {
  ChildProcess child;
  EXPECT_TRUE(child.Start(argv, {"WORD=from the environment"}).ok());
  while (child.output_fd() >= 0) {
    pollfd watched = {child.output_fd(), POLLIN, 0};
    poll(&watched, 1, 10000);
    for (std::string& line : child.ReadLines()) lines->push_back(std::move(line));
  }
  int wait_status = 0;
  EXPECT_EQ(waitpid(child.pid(), &wait_status, 0), child.pid());
  child.Collected();
  return wait_status;
}

TEST(ChildProcessTest, RunsOnTheGivenCpusAlone) {
  cpu_set_t own;
  ASSERT_EQ(sched_getaffinity(0, sizeof(own), &own), 0);
  int last = -1;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &own)) last = cpu;
  }
  ChildProcess child;
  // A child of the child inherits them, as ranks do from mpirun.
  ASSERT_TRUE(child
                  .Start({"/bin/sh", "-c", "grep Cpus_allowed_list /proc/self/status; true"},
                         {"PATH=/usr/bin:/bin"}, {last})
                  .ok());
  std::vector<std::string> lines;
  while (child.output_fd() >= 0) {
    pollfd watched = {child.output_fd(), POLLIN, 0};
    poll(&watched, 1, 10000);
    for (std::string& line : child.ReadLines()) lines.push_back(std::move(line));
  }
  EXPECT_EQ(waitpid(child.pid(), nullptr, 0), child.pid());
  child.Collected();
  EXPECT_THAT(lines, ElementsAre("Cpus_allowed_list:\t" + std::to_string(last)));
}

TEST(ChildProcessTest, GivesBothOutputsLineByLineAndTheExitCode) {
  std::vector<std::string> lines;
  const int status =
      RunToEnd({"/bin/sh", "-c", "echo one; echo \"$WORD\" >&2; printf tail; exit 3"}, &lines);
  EXPECT_THAT(lines, ElementsAre("one", "from the environment", "tail"));
  EXPECT_EQ(ExitCodeOf(status), 3);
  EXPECT_EQ(DescribeExit(status), "exit code 3");
}

TEST(ChildProcessTest, StandardInputIsEmpty) {
  std::vector<std::string> lines;
  RunToEnd({"/bin/cat"}, &lines);
  EXPECT_TRUE(lines.empty());
}

TEST(ChildProcessTest, AProgramThatCannotBeExecutedEndsWith127) {
  std::vector<std::string> lines;
  EXPECT_EQ(ExitCodeOf(RunToEnd({"/nonexistent/program"}, &lines)), 127);
  EXPECT_THAT(lines, ElementsAre("cannot execute the program"));
}

TEST(ChildProcessTest, DeathBySignalIsSaidAsAShellSaysIt) {
  std::vector<std::string> lines;
  const int status = RunToEnd({"/bin/sh", "-c", "kill -9 $$"}, &lines);
  EXPECT_EQ(ExitCodeOf(status), 137);
  EXPECT_EQ(DescribeExit(status), "signal 9 (Killed)");
}

TEST(ChildProcessTest, CutsALineWithoutEnd) {
  std::vector<std::string> lines;
  RunToEnd({"/bin/sh", "-c", "head -c 10000 /dev/zero | tr '\\0' x"}, &lines);
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_EQ(lines[0].size(), 4096U);
  EXPECT_EQ(lines[0].size() + lines[1].size() + lines[2].size(), 10000U);
}

TEST(ChildProcessTest, RunsInAProcessGroupOfItsOwnAndIsFoundAmongTheChildren) {
  ChildProcess child;
  ASSERT_TRUE(child.Start({"/bin/sleep", "60"}, {}).ok());
  const std::vector<pid_t> children = ChildrenOfThisProcess();
  EXPECT_NE(std::find(children.begin(), children.end(), child.pid()), children.end());
  // The child sets its group before it executes; until then it is in ours.
  for (int i = 0; i < 1000 && getpgid(child.pid()) == getpgrp(); ++i) usleep(1000);
  EXPECT_EQ(getpgid(child.pid()), child.pid());
  child.Signal(SIGKILL);
  EXPECT_EQ(waitpid(child.pid(), nullptr, 0), child.pid());
  child.Collected();
  EXPECT_FALSE(child.running());
}

}  // namespace
}  // namespace pergola
