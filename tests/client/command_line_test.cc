// The command as a person meets it: arguments in, exit code and one line out. In this process.
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "client/commands.h"
#include "client/files.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace pergola {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// Below every timeout of the commands (the shortest is 5 s), far above what a refusal takes.
constexpr std::chrono::seconds kAtOnce{3};

class CommandLineTest : public ::testing::Test {
 protected:
  CommandLineTest() {
    std::string pattern = ::testing::TempDir() + "pergola-XXXXXX";
    folder_ = mkdtemp(pattern.data());
    std::ofstream(folder_ + "/token") << "secret\n";
  }
  ~CommandLineTest() override {
    for (const char* name : {"/token", "/run.json", "/old.json"}) {
      unlink((folder_ + name).c_str());
    }
    rmdir(folder_.c_str());
  }

  int Run(const std::vector<std::string>& arguments) {
    Context context;
    context.runtime_dir = folder_;
    std::vector<const char*> argv = {"pergola"};
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    ::testing::internal::CaptureStdout();
    ::testing::internal::CaptureStderr();
    const auto start = std::chrono::steady_clock::now();
    const int code = RunCommandLine(context, "1.2", static_cast<int>(argv.size()), argv.data());
    took_ = std::chrono::steady_clock::now() - start;
    errors_ = ::testing::internal::GetCapturedStderr();
    output_ = ::testing::internal::GetCapturedStdout();
    return code;
  }

  // Exit code 2, at once, and exactly this line.
  void ExpectRefusal(const std::vector<std::string>& arguments, const std::string& line) {
    EXPECT_EQ(Run(arguments), 2) << line;
    EXPECT_EQ(errors_, "pergola: " + line + "\n");
    EXPECT_LT(took_, kAtOnce) << line;
  }

  // `address` for each command that dials.
  std::vector<std::vector<std::string>> Dialling(const std::string& address) const {
    const std::string token = folder_ + "/token";
    return {
        {"generate", "--connect", address, "hello"},
        {"chat", "--connect", address, "--message", "hello"},
        {"bench", "--connect", address},
        {"status", "--connect-internal", address, "--join-token-file", token},
        {"drain", "--connect-internal", address, "--join-token-file", token},
    };
  }

  std::string folder_;
  std::string errors_;
  std::string output_;
  std::chrono::steady_clock::duration took_{};
};

TEST_F(CommandLineTest, EveryCommandRefusesAnAddressThatNobodyCanDialAtOnce) {
  for (const std::string address :
       {"nope", "host:99999", "127.0.0.1:0", "127.0.0.1:", ":80", "127.0.0.1:+80", "::1:80"}) {
    for (const auto& arguments : Dialling(address)) {
      ExpectRefusal(arguments,
                    arguments[1] + " " + address + ": must be HOST:PORT with a port of 1 to 65535");
    }
  }
}

TEST_F(CommandLineTest, EveryCommandSaysAtOnceThatAHostDoesNotResolve) {
  // RFC 6761 keeps "invalid" from ever being a host; a label of 64 characters is refused before
  // anybody is asked, so this does not depend on the machine's name servers.
  const std::string host = std::string(64, 'x') + ".invalid";
  for (const auto& arguments : Dialling(host + ":80")) {
    EXPECT_EQ(Run(arguments), 2);
    EXPECT_THAT(errors_, StartsWith("pergola: " + arguments[1] + " " + host + ":80: host '" + host +
                                    "' does not resolve: "));
    EXPECT_EQ(errors_.find('\n'), errors_.size() - 1) << errors_;
    EXPECT_LT(took_, kAtOnce);
  }
}

TEST_F(CommandLineTest, ABadAddressInTheRunFileIsRefusedWithTheFilesName) {
  const std::string run_file = folder_ + "/run.json";
  std::ofstream(run_file) << R"({"model": "m", "public_address": "nope", "internal_address": "h:0",
      "token_file": "t", "up_pid": 1, "coordinator_pid": 1,
      "groups": [{"name": "group-0", "mpirun_pid": 1}]})";
  const std::string limit = ": must be HOST:PORT with a port of 1 to 65535";
  ExpectRefusal({"generate", "hello"}, "run file " + run_file + ": nope" + limit);
  ExpectRefusal({"status"}, "run file " + run_file + ": h:0" + limit);
}

TEST_F(CommandLineTest, TheResumeTimeoutBoundsTheFirstConnectionAndIsTold) {
  // Port 9 of the loopback (discard) is privileged and unused here.
  EXPECT_EQ(Run({"generate", "--connect", "127.0.0.1:9", "--resume-timeout-ms", "300", "hello"}),
            1);
  EXPECT_EQ(errors_, "pergola: 127.0.0.1:9: UNAVAILABLE: nothing answers within 300 ms\n");
  EXPECT_GE(took_, std::chrono::milliseconds(300));
  EXPECT_LT(took_, kAtOnce);
}

TEST_F(CommandLineTest, NumbersBeyondTheirLimitsAreOneLineWithOptionValueAndLimit) {
  const std::vector<std::string> generate = {"generate", "hello"};
  const auto with = [](std::vector<std::string> command, const char* flag, const char* value) {
    command.insert(command.end(), {flag, value});
    return command;
  };
  ExpectRefusal(with(generate, "--seed", "-1"), "--seed -1: must be 0 to 18446744073709551615");
  ExpectRefusal(with(generate, "--top-p", "2"), "--top-p 2: must be above 0 and at most 1");
  ExpectRefusal(with(generate, "--top-p", "nan"), "--top-p nan: must be above 0 and at most 1");
  ExpectRefusal(with(generate, "--top-k", "-1"), "--top-k -1: must be 0 to 4294967295");
  ExpectRefusal(with(generate, "--temperature", "101"), "--temperature 101: must be 0 to 100");
  ExpectRefusal(with(generate, "--max-new-tokens", "0"),
                "--max-new-tokens 0: must be 1 to 4294967295; 0 only with --prompt-logprobs");
  ExpectRefusal(with(generate, "--logit-bias", "5=200"),
                "--logit-bias 5=200: must be ID=BIAS with an id of 0 to 2147483647 and a bias of "
                "-100 to 100");
  ExpectRefusal(with(generate, "--priority", "-101"), "--priority -101: must be -100 to 100");
  ExpectRefusal(with(generate, "--resume-timeout-ms", "soon"),
                "--resume-timeout-ms soon: must be 0 to 86400000");
  ExpectRefusal({"up", "--groups", "17", "m"}, "--groups 17: must be 1 to 16");
  ExpectRefusal({"up", "--groups", "0", "m"}, "--groups 0: must be 1 to 16");
  ExpectRefusal(with({"bench"}, "--streams", "16385"), "--streams 16385: must be 1 to 16384");
  ExpectRefusal(with({"bench"}, "--seed", "-5"), "--seed -5: must be 0 to 18446744073709551615");
  ExpectRefusal(with({"status"}, "--timeout-ms", "0"), "--timeout-ms 0: must be 1 to 3600000");
  ExpectRefusal(with({"status", "--watch"}, "--interval-ms", "99"),
                "--interval-ms 99: must be 100 to 3600000");
  ExpectRefusal(with({"status"}, "--interval-ms", "500"), "--interval-ms 500: needs --watch");
  ExpectRefusal(with({"drain"}, "--timeout-ms", "0"), "--timeout-ms 0: must be 1 to 86400000");
}

TEST_F(CommandLineTest, MistakenFlagsAreOneLineThatNamesTheHelp) {
  ExpectRefusal({}, "A subcommand is required; --help shows the flags");
  EXPECT_EQ(Run({"generate", "--no-such-flag", "hello"}), 2);
  EXPECT_THAT(errors_, AllOf(StartsWith("pergola: "), HasSubstr("--no-such-flag"),
                             EndsWith("; --help shows the flags\n")));
  EXPECT_EQ(errors_.find('\n'), errors_.size() - 1) << errors_;
}

TEST_F(CommandLineTest, HelpAndVersionAreOutputAndExitCode0) {
  EXPECT_EQ(Run({"--version"}), 0);
  EXPECT_EQ(output_, "pergola 1.2\n");
  for (const char* command : {"up", "generate", "chat", "status", "drain", "bench"}) {
    EXPECT_EQ(Run({command, "--help"}), 0);
    EXPECT_THAT(output_, HasSubstr("--run-file"));
    EXPECT_EQ(errors_, "");
  }
}

TEST_F(CommandLineTest, BenchRefusesAFileItCannotWriteBeforeItDials) {
  // Nothing listens there; dialling would end with another line.
  ExpectRefusal({"bench", "--connect", "127.0.0.1:9", "--json", folder_ + "/none/x.json"},
                "--json: cannot write " + folder_ + "/none/x.json: No such file or directory");
  ExpectRefusal({"bench", "--connect", "127.0.0.1:9", "--json", folder_},
                "--json: cannot write " + folder_ + ": Is a directory");
}

TEST_F(CommandLineTest, CheckingThatAFileCanBeWrittenChangesNothing) {
  const std::string old = folder_ + "/old.json";
  std::ofstream(old) << "numbers of before";
  EXPECT_TRUE(CheckWritable(old).ok());
  EXPECT_EQ(ReadSmallFile(old, 100).value(), "numbers of before");
  EXPECT_TRUE(CheckWritable(folder_ + "/new.json").ok());
  EXPECT_NE(access((folder_ + "/new.json").c_str(), F_OK), 0);
}

}  // namespace
}  // namespace pergola
