// Ctrl-C of a benchmark: noticed and asked for, so that what was measured is still reported.
#pragma once

#include <csignal>

namespace pergola {

// While it lives, SIGINT and SIGTERM do not end this thread, nor those that it starts, but can be
// asked for. Make it before any thread. After the first one the next ends the process as usual.
class BenchInterrupt {
 public:
  BenchInterrupt();
  ~BenchInterrupt();
  BenchInterrupt(const BenchInterrupt&) = delete;
  BenchInterrupt& operator=(const BenchInterrupt&) = delete;

  // Whether a signal has come. A system call: ask now and then.
  bool Seen();

 private:
  void Restore();

  sigset_t before_{};
  int fd_ = -1;  // none: signals end the process
  bool seen_ = false;
};

}  // namespace pergola
