#include "client/interrupt.h"

#include <sys/signalfd.h>
#include <unistd.h>

namespace pergola {

Interrupts::Interrupts() {
  sigset_t watched;
  sigemptyset(&watched);
  sigaddset(&watched, SIGINT);
  pthread_sigmask(SIG_BLOCK, &watched, &before_);
  fd_ = signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd_ < 0) pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

Interrupts::~Interrupts() {
  if (fd_ < 0) return;
  close(fd_);
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

bool Interrupts::Take() {
  signalfd_siginfo info;
  bool taken = false;
  while (fd_ >= 0 && read(fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    taken = true;
  }
  return taken;
}

}  // namespace pergola
