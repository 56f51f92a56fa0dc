// Ctrl-C that does not end the program: a file descriptor becomes readable instead.
#pragma once

#include <csignal>

namespace pergola {

// While it lives, SIGINT ends neither this thread nor those that it starts. Make it before any
// thread.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Readable once a signal has come and was not taken; -1: signals end the process as usual.
  int fd() const { return fd_; }
  // Takes what has come; false if nothing had.
  bool Take();

 private:
  sigset_t before_{};
  int fd_ = -1;
};

}  // namespace pergola
