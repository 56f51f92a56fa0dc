#include "coordinator/doors/delivery_thread.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

namespace pergola {

DeliveryThread::DeliveryThread() : thread_([this] { Loop(); }) {
  pthread_setname_np(thread_.native_handle(), "delivery");
}

DeliveryThread::~DeliveryThread() {
  Stop();
}

bool DeliveryThread::Post(std::shared_ptr<MailReceiver> receiver) {
  {
    MutexLock lock(mutex_);
    if (stopping_) return false;
    waiting_.push_back(std::move(receiver));
    if (waiting_.size() > 1) return true;
  }
  wake_.NotifyOne();
  return true;
}

void DeliveryThread::Stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.NotifyOne();
  if (thread_.joinable()) thread_.join();
}

void DeliveryThread::Loop() {
  Clock::time_point rest_until = Clock::now();
  std::vector<std::shared_ptr<MailReceiver>> round;
  while (true) {
    {
      MutexLock lock(mutex_);
      while (!stopping_ && Clock::now() < rest_until) wake_.WaitUntil(mutex_, rest_until);
      while (!stopping_ && waiting_.empty()) wake_.Wait(mutex_);
      if (waiting_.empty()) return;
      round.swap(waiting_);
    }
    const Clock::time_point begin = Clock::now();
    for (const std::shared_ptr<MailReceiver>& receiver : round) receiver->TakeMail();
    round.clear();
    const Clock::time_point end = Clock::now();
    rest_until = end + std::min<Clock::duration>(kRestFactor * (end - begin), kLongestRest);
  }
}

}  // namespace pergola
