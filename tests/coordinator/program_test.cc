// The program itself: exit codes, its one line of error, its run file and its signals.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/coordinator/http_client.h"

namespace pergola {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class ProgramTest : public ::testing::Test {
 protected:
  ProgramTest() {
    std::string pattern = ::testing::TempDir() + "pergola-XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~ProgramTest() override {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      Wait();
    }
    for (const char* name : {"/err", "/run.json", "/trace.json", "/token"}) {
      unlink((folder_ + name).c_str());
    }
    rmdir(folder_.c_str());
  }

  void Start(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), std::string(PERGOLA_BIN_DIR) + "/pergola-coordinator");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ != 0) return;
    const int fd = open((folder_ + "/err").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    dup2(fd, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }

  // The exit code, or 128 + the signal.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  int Run(std::vector<std::string> arguments) {
    Start(std::move(arguments));
    return Wait();
  }

  std::string Errors() const {
    std::ifstream file(folder_ + "/err");
    return {std::istreambuf_iterator<char>(file), {}};
  }

  // The run file, once it is there.
  nlohmann::json RunFile() const {
    for (int i = 0; i < 1000; ++i) {
      std::ifstream file(folder_ + "/run.json");
      if (file) return nlohmann::json::parse(file);
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ADD_FAILURE() << "no run file: " << Errors();
    return {};
  }

  std::vector<std::string> Serving() const {
    return {"--model", Model(), "--listen", "127.0.0.1:0", "--run-file", folder_ + "/run.json"};
  }

  static std::string Model() { return std::string(PERGOLA_TEST_DATA) + "/golden/tiny_text"; }

  std::string folder_;
  pid_t pid_ = -1;
};

TEST_F(ProgramTest, BadStartsAreOneLineAndExitCode2) {
  const std::string token = folder_ + "/token";
  std::ofstream(token) << "secret";
  chmod(token.c_str(), 0644);
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "--model is required"},
      {{"--model", Model(), "--no-such-flag"}, "--no-such-flag"},
      {{"--model", "/nonexistent"}, "/nonexistent"},
      {{"--model", Model(), "--listen", "here"}, "'here' is no address"},
      {{"--model", Model(), "--listen", "127.0.0.1:0", "--http-listen", "9400"},
       "'9400' is no address"},
      {{"--model", Model(), "--max-queued", "0"}, "--max-queued 0: must be 1 to 1000000"},
      {{"--model", Model(), "--slow-reader-timeout-ms", "99"}, "--slow-reader-timeout-ms"},
      {{"--model", Model(), "--log-level", "loud"}, "--log-level"},
      {{"--model", Model(), "--trace", "/nonexistent/t.json"}, "cannot write /nonexistent/t.json"},
      {{"--model", Model(), "--join-token-file", token}, "mode 0644"},
      {{"--model", Model(), "--listen", "127.0.0.1:0", "--internal-listen", "0.0.0.0:0"},
       "no join token"},
      {{"--model", Model(), "--listen", "127.0.0.1:0", "--run-file", "/nonexistent/r"},
       "cannot write run file"},
  };
  for (const auto& [arguments, expected] : cases) {
    EXPECT_EQ(Run(arguments), 2) << expected;
    const std::string errors = Errors();
    EXPECT_THAT(errors, StartsWith("pergola-coordinator: ")) << expected;
    EXPECT_THAT(errors, HasSubstr(expected));
    EXPECT_EQ(errors.find('\n'), errors.size() - 1) << errors;
  }
}

TEST_F(ProgramTest, TerminatesCleanlyAndTakesItsRunFileAlong) {
  Start(Serving());
  const nlohmann::json run = RunFile();
  EXPECT_EQ(run["pid"], pid_);
  EXPECT_THAT(std::string(run["public_address"]), StartsWith("127.0.0.1:"));
  EXPECT_NE(run["public_address"], run["internal_address"]);
  EXPECT_EQ(run["http_address"], "") << "nobody asked for it";
  kill(pid_, SIGTERM);
  EXPECT_EQ(Wait(), 0) << Errors();
  EXPECT_NE(access((folder_ + "/run.json").c_str(), F_OK), 0);
}

TEST_F(ProgramTest, ServesHealthOverHttpWhereItsRunFileSays) {
  std::vector<std::string> arguments = Serving();
  arguments.insert(arguments.end(), {"--http-listen", "127.0.0.1:0"});
  Start(arguments);
  const std::string address = RunFile()["http_address"];
  EXPECT_EQ(BodyOf(HttpGet(address, "/healthz")), "NOT_SERVING\n");
  EXPECT_THAT(HttpGet(address, "/metrics"), HasSubstr("\npergola_serving 0\n"));
  EXPECT_THAT(Errors(), HasSubstr("HTTP on " + address));
  kill(pid_, SIGTERM);
  EXPECT_EQ(Wait(), 0) << Errors();
}

TEST_F(ProgramTest, APortInUseIsOneLine) {
  Start(Serving());
  const std::string taken = RunFile()["public_address"];
  const pid_t first = pid_;
  EXPECT_EQ(Run({"--model", Model(), "--listen", taken}), 2);
  EXPECT_EQ(Errors(),
            "pergola-coordinator: cannot listen on " + taken + ": Address already in use\n");
  pid_ = first;
  kill(pid_, SIGINT);
  EXPECT_EQ(Wait(), 0);
}

}  // namespace
}  // namespace pergola
