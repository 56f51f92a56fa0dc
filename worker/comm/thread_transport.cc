#include "worker/comm/thread_transport.h"

#include <utility>

#include "base/status.h"

namespace pergola {

void ThreadMailboxes::Post(int from, int to, Tag tag, std::vector<uint8_t> message) {
  {
    MutexLock lock(mutex_);
    mail_[{from, to, tag}].push_back(std::move(message));
  }
  changed_.NotifyAll();
}

absl::Status ThreadMailboxes::Take(int from, int to, Tag tag, std::vector<uint8_t>* message) {
  MutexLock lock(mutex_);
  std::deque<std::vector<uint8_t>>& box = mail_[{from, to, tag}];
  while (box.empty() && !abandoned_) changed_.Wait(mutex_);
  if (box.empty()) return absl::UnavailableError("a rank of this group has given up");
  *message = std::move(box.front());
  box.pop_front();
  return absl::OkStatus();
}

bool ThreadMailboxes::Has(int from, int to, Tag tag) {
  MutexLock lock(mutex_);
  return !mail_[{from, to, tag}].empty();
}

void ThreadMailboxes::Abandon() {
  {
    MutexLock lock(mutex_);
    abandoned_ = true;
  }
  changed_.NotifyAll();
}

absl::Status ThreadTransport::Send(int to, Tag tag, const void* data, int64_t bytes) {
  const auto* source = static_cast<const uint8_t*>(data);
  mailboxes_->Post(rank_, to, tag, std::vector<uint8_t>(source, source + bytes));
  return absl::OkStatus();
}

absl::Status ThreadTransport::Receive(int from, Tag tag, std::vector<uint8_t>* out, bool /*idle*/) {
  ScopedWait wait(*board_, "receive", messages_++, from);
  return mailboxes_->Take(from, rank_, tag, out);
}

}  // namespace pergola
