#include "client/child_process.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "client/files.h"

namespace pergola {
namespace {

constexpr size_t kMaxLineBytes = 4096;

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  pointers.reserve(strings.size() + 1);
  for (const std::string& s : strings) pointers.push_back(const_cast<char*>(s.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

struct ChildStart {
  pid_t parent;
  int input;
  int output;
  char* const* argv;
  char* const* environment;
  const cpu_set_t* cpus;  // null: as the parent's
};

// Between fork and exec only async-signal-safe calls: other threads may have held any lock.
[[noreturn]] void RunChild(const ChildStart& start) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  // The parent may have died before the line above took effect.
  if (getppid() != start.parent) _exit(127);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  // Without it the processes only share more CPUs than they should.
  if (start.cpus != nullptr) sched_setaffinity(0, sizeof(*start.cpus), start.cpus);
  if (dup2(start.input, STDIN_FILENO) < 0 || dup2(start.output, STDOUT_FILENO) < 0 ||
      dup2(start.output, STDERR_FILENO) < 0) {
    _exit(127);
  }
  execve(start.argv[0], start.argv, start.environment);
  constexpr char kText[] = "cannot execute the program\n";
  const ssize_t ignored = write(STDERR_FILENO, kText, sizeof(kText) - 1);
  (void)ignored;
  _exit(127);
}

}  // namespace

ChildProcess::~ChildProcess() {
  if (output_fd_ >= 0) close(output_fd_);
}

absl::Status ChildProcess::Start(const std::vector<std::string>& argv,
                                 const std::vector<std::string>& environment,
                                 const std::vector<int>& cpus) {
  PERGOLA_CHECK(!running() && !argv.empty());
  Close();
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot make a pipe: ", strerror(errno)));
  }
  const int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
  std::vector<char*> argv_pointers = Pointers(argv);
  std::vector<char*> environment_pointers = Pointers(environment);
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  const ChildStart start = {getpid(),
                            input,
                            ends[1],
                            argv_pointers.data(),
                            environment_pointers.data(),
                            cpus.empty() ? nullptr : &set};
  const pid_t pid = input < 0 ? -1 : fork();
  if (pid == 0) RunChild(start);
  const int error = errno;
  if (input >= 0) close(input);
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return absl::UnavailableError(absl::StrCat("cannot start ", argv[0], ": ", strerror(error)));
  }
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  pid_ = pid;
  output_fd_ = ends[0];
  return absl::OkStatus();
}

std::vector<std::string> ChildProcess::ReadLines() {
  std::vector<std::string> lines;
  char buffer[8192];
  while (output_fd_ >= 0) {
    const ssize_t n = read(output_fd_, buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n <= 0) {
      close(output_fd_);
      output_fd_ = -1;
      if (!partial_.empty()) lines.push_back(std::move(partial_));
      partial_.clear();
      break;
    }
    for (ssize_t i = 0; i < n; ++i) {
      if (buffer[i] != '\n') partial_ += buffer[i];
      if (buffer[i] == '\n' || partial_.size() >= kMaxLineBytes) {
        lines.push_back(std::move(partial_));
        partial_.clear();
      }
    }
  }
  return lines;
}

std::vector<std::string> ChildProcess::Close() {
  std::vector<std::string> lines = ReadLines();
  if (output_fd_ >= 0) close(output_fd_);
  output_fd_ = -1;
  if (!partial_.empty()) lines.push_back(std::move(partial_));
  partial_.clear();
  return lines;
}

void ChildProcess::Signal(int signal) const {
  if (running()) kill(pid_, signal);
}

int ExitCodeOf(int wait_status) {
  if (WIFSIGNALED(wait_status)) return 128 + WTERMSIG(wait_status);
  return WEXITSTATUS(wait_status);
}

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int signal = WTERMSIG(wait_status);
    return absl::StrCat("signal ", signal, " (", strsignal(signal), ")");
  }
  return absl::StrCat("exit code ", WEXITSTATUS(wait_status));
}

std::vector<pid_t> ChildrenOfThisProcess() {
  std::vector<pid_t> children;
  DIR* proc = opendir("/proc");
  if (proc == nullptr) return children;
  while (const dirent* entry = readdir(proc)) {
    const pid_t pid = static_cast<pid_t>(std::strtol(entry->d_name, nullptr, 10));
    if (pid <= 0) continue;
    const absl::StatusOr<std::string> stat =
        ReadSmallFile(absl::StrCat("/proc/", pid, "/stat"), 4096);
    if (!stat.ok()) continue;
    // "pid (name) state ppid ...", where the name may itself hold parentheses.
    const size_t after_name = stat->rfind(") ");
    if (after_name == std::string::npos || after_name + 4 >= stat->size()) continue;
    if (std::strtol(stat->c_str() + after_name + 4, nullptr, 10) == getpid()) {
      children.push_back(pid);
    }
  }
  closedir(proc);
  std::sort(children.begin(), children.end());
  return children;
}

}  // namespace pergola
