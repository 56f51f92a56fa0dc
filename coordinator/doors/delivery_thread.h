// The one thread between mailboxes and writes. It works in rounds: all calls with mail, one after
// another; then it rests in proportion to the time the round took, while what comes gathers in the
// mailboxes. So where streams run faster than messages can be written, messages grow larger instead
// of the writing taking the machine from the engine; where they do not, a rest ends before new mail
// comes and delays nothing.
#pragma once

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace pergola {

class MailReceiver {
 public:
  virtual ~MailReceiver() = default;
  // On the delivery thread; must not block.
  virtual void TakeMail() = 0;
};

class DeliveryThread {
 public:
  // A share of a third of a core. gRPC's own threads need about twice as much again for what is
  // written here.
  static constexpr int kRestFactor = 2;
  // Whatever a round took: a machine that is late is not made later.
  static constexpr std::chrono::milliseconds kLongestRest{10};

  DeliveryThread();
  ~DeliveryThread();  // Stop()
  DeliveryThread(const DeliveryThread&) = delete;
  DeliveryThread& operator=(const DeliveryThread&) = delete;

  // TakeMail() in the next round. The caller sees to it that a receiver waits once at most, so
  // calls in progress bound the queue. False, and nothing happens, after Stop(). Any thread.
  bool Post(std::shared_ptr<MailReceiver> receiver);

  // Serves those who wait and joins the thread. Idempotent; not from TakeMail().
  void Stop();

 private:
  using Clock = std::chrono::steady_clock;
  void Loop();

  Mutex mutex_;
  CondVar wake_;
  std::vector<std::shared_ptr<MailReceiver>> waiting_ GUARDED_BY(mutex_);
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace pergola
