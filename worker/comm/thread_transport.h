// The Transport between ranks that are threads of one process: mailboxes under one mutex. For tests
// and for groups without MPI.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "absl/status/status.h"
#include "base/mutex.h"
#include "worker/comm/transport.h"
#include "worker/comm/wait_board.h"

namespace pergola {

// The mailboxes of all ranks. Thread-safe.
class ThreadMailboxes {
 public:
  void Post(int from, int to, Tag tag, std::vector<uint8_t> message);
  // Waits; UNAVAILABLE after Abandon.
  absl::Status Take(int from, int to, Tag tag, std::vector<uint8_t>* message);
  bool Has(int from, int to, Tag tag);
  // Makes every present and later Take of an empty mailbox fail.
  void Abandon();

 private:
  using Key = std::tuple<int, int, Tag>;
  Mutex mutex_;
  CondVar changed_;
  std::map<Key, std::deque<std::vector<uint8_t>>> mail_ GUARDED_BY(mutex_);
  bool abandoned_ GUARDED_BY(mutex_) = false;
};

class ThreadTransport : public Transport {
 public:
  // `mailboxes` is shared with the other ranks; `board` is borrowed.
  ThreadTransport(std::shared_ptr<ThreadMailboxes> mailboxes, int rank, WaitBoard* board)
      : mailboxes_(std::move(mailboxes)), rank_(rank), board_(board) {}

  absl::Status Send(int to, Tag tag, const void* data, int64_t bytes) override;
  absl::Status Receive(int from, Tag tag, std::vector<uint8_t>* out, bool idle) override;
  bool Probe(int from, Tag tag) override { return mailboxes_->Has(from, rank_, tag); }
  absl::Status Flush() override { return absl::OkStatus(); }

 private:
  const std::shared_ptr<ThreadMailboxes> mailboxes_;
  const int rank_;
  WaitBoard* const board_;
  uint64_t messages_ = 0;
};

}  // namespace pergola
