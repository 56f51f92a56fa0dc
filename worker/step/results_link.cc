#include "worker/step/results_link.h"

#include <chrono>
#include <utility>

#include "base/log.h"
#include "base/status.h"

namespace pergola {

// One Results call. Lives until OnDone; the link outlives it.
class ResultsLink::Connection : public grpc::ClientWriteReactor<v1::ResultMessage> {
 public:
  explicit Connection(ResultsLink* link) : link_(link) {
    link_->client_->Authorize(&context_);
    link_->client_->stub().async()->Results(&context_, &ack_, this);
    // Writes start from other threads: each holds the call for itself, and this hold, released by
    // Close, is there whenever one of them begins.
    AddHold();
    StartCall();
  }

  void Write() {
    {
      MutexLock lock(mutex_);
      if (writing_ || closed_) return;
      std::optional<v1::ResultMessage> message = link_->NextMessage(this);
      if (!message) return;
      out_ = *std::move(message);
      writing_ = true;
      AddHold();
    }
    StartWrite(&out_);
    RemoveHold();
  }

  void Cancel() {
    context_.TryCancel();
    Close();
  }

  // The coordinator ends this call only with a status, which shows as a failed write; an idle group
  // writes one result a second.
  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(mutex_);
      writing_ = false;
    }
    if (ok) {
      Write();
      return;
    }
    if (out_.has_result()) link_->TakeBack(std::move(*out_.mutable_result()));
    Close();
  }

  void OnDone(const grpc::Status& status) override { link_->Ended(FromGrpc(status)); }

 private:
  void Close() {
    {
      MutexLock lock(mutex_);
      if (closed_) return;
      closed_ = true;
    }
    RemoveHold();
  }

  ResultsLink* const link_;
  grpc::ClientContext context_;
  v1::ResultsAck ack_;
  v1::ResultMessage out_;
  Mutex mutex_;
  bool writing_ GUARDED_BY(mutex_) = false;
  bool closed_ GUARDED_BY(mutex_) = false;
};

ResultsLink::ResultsLink(InternalClient* client, const ResultsLinkOptions& options)
    : client_(client), options_(options) {
  thread_ = std::thread([this] { Run(); });
}

ResultsLink::~ResultsLink() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  state_changed_.NotifyAll();
  thread_.join();
}

void ResultsLink::Push(v1::StepResult result) {
  std::shared_ptr<Connection> connection;
  {
    MutexLock lock(mutex_);
    // A result of a newer epoch says that nobody waits for those before it.
    while (!waiting_.empty() && (waiting_.front().epoch() < result.epoch() ||
                                 waiting_.size() >= options_.max_waiting_results)) {
      waiting_.pop_front();
    }
    waiting_.push_back(std::move(result));
    connection = connection_;
  }
  if (connection != nullptr) connection->Write();
}

std::optional<v1::ResultMessage> ResultsLink::NextMessage(Connection* connection) {
  MutexLock lock(mutex_);
  if (connection_.get() != connection) return std::nullopt;
  v1::ResultMessage message;
  if (!hello_sent_) {
    message.mutable_hello()->set_group(options_.group);
    hello_sent_ = true;
    return message;
  }
  if (waiting_.empty()) return std::nullopt;
  *message.mutable_result() = std::move(waiting_.front());
  waiting_.pop_front();
  return message;
}

void ResultsLink::TakeBack(v1::StepResult result) {
  MutexLock lock(mutex_);
  if (waiting_.empty() || waiting_.front().epoch() == result.epoch()) {
    waiting_.push_front(std::move(result));
  }
}

void ResultsLink::Ended(const absl::Status& status) {
  LOG_DEBUG("the results stream ended: {}", status.ToString());
  MutexLock lock(mutex_);
  connection_ended_ = true;
  // Under the lock: the thread that waits for this may destroy the link next.
  state_changed_.NotifyAll();
}

void ResultsLink::Serve() {
  {
    MutexLock lock(mutex_);
    hello_sent_ = false;
    connection_ended_ = false;
  }
  auto connection = std::make_shared<Connection>(this);
  {
    MutexLock lock(mutex_);
    connection_ = connection;
  }
  connection->Write();
  bool cancelled = false;
  MutexLock lock(mutex_);
  while (!connection_ended_) {
    if (stopping_ && !cancelled) {
      cancelled = true;
      mutex_.unlock();
      connection->Cancel();
      mutex_.lock();
      continue;
    }
    state_changed_.Wait(mutex_);
  }
  connection_.reset();
}

void ResultsLink::Run() {
  Redial redial(options_.redial);
  while (true) {
    const auto begun = std::chrono::steady_clock::now();
    Serve();
    // A connection that lasted was good; only a row of failures is paced down.
    if (std::chrono::steady_clock::now() - begun > std::chrono::seconds(5)) redial.Reset();
    const auto next =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(redial.NextDelayMs());
    MutexLock lock(mutex_);
    while (!stopping_ && std::chrono::steady_clock::now() < next) {
      state_changed_.WaitUntil(mutex_, next);
    }
    if (stopping_) return;
  }
}

}  // namespace pergola
