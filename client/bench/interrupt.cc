#include "client/bench/interrupt.h"

#include <sys/signalfd.h>
#include <unistd.h>

namespace pergola {

BenchInterrupt::BenchInterrupt() {
  sigset_t watched;
  sigemptyset(&watched);
  sigaddset(&watched, SIGINT);
  sigaddset(&watched, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &watched, &before_);
  fd_ = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd_ < 0) pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

BenchInterrupt::~BenchInterrupt() {
  Restore();
}

bool BenchInterrupt::Seen() {
  signalfd_siginfo info;
  if (fd_ >= 0 && read(fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    seen_ = true;
    Restore();
  }
  return seen_;
}

void BenchInterrupt::Restore() {
  if (fd_ < 0) return;
  close(fd_);
  fd_ = -1;
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

}  // namespace pergola
