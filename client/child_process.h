// A child process whose output comes back line by line, and which dies with us. Used from one
// thread, the one that ends last: the kernel's parent-death signal follows the thread that forked.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace pergola {

class ChildProcess {
 public:
  ChildProcess() = default;
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Starts argv[0] (a path) in a process group of its own, so that a terminal's Ctrl-C reaches only
  // us. Standard input is empty; standard output and error come through ReadLines. A start while
  // running is a bug. It and its children run on `cpus` alone, unless those are none. UNAVAILABLE
  // if the system has no process or descriptor left; a program that cannot be executed ends with
  // code 127.
  absl::Status Start(const std::vector<std::string>& argv,
                     const std::vector<std::string>& environment,
                     const std::vector<int>& cpus = {});

  bool running() const { return pid_ > 0; }
  pid_t pid() const { return pid_; }
  int output_fd() const { return output_fd_; }  // -1 when closed

  // The whole lines that have come since the last call, without waiting. A line longer than 4096
  // bytes comes in parts. At the end of the output the rest comes too, and output_fd turns -1.
  std::vector<std::string> ReadLines();
  // Closes the output and returns what is left of it.
  std::vector<std::string> Close();

  void Signal(int signal) const;
  // The owner has collected this process's exit with waitpid.
  void Collected() { pid_ = 0; }

 private:
  pid_t pid_ = 0;
  int output_fd_ = -1;
  std::string partial_;
};

// 0 to 255; 128 + signal after a signal, as a shell says it.
int ExitCodeOf(int wait_status);
// "exit code 3" or "signal 9 (Killed)".
std::string DescribeExit(int wait_status);

// Processes whose parent is this one, by a scan of /proc.
std::vector<pid_t> ChildrenOfThisProcess();

}  // namespace pergola
