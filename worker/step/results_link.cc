#include "worker/step/results_link.h"

#include <chrono>
#include <utility>

#include "base/log.h"
#include "base/status.h"

namespace pergola {
namespace {

// A connection that lasted so long was good; only a row of failures is paced down.
constexpr std::chrono::seconds kGood{5};

enum class Event : uintptr_t { kStarted = 1, kWritten, kFinished };

void* Tag(Event event) {
  return reinterpret_cast<void*>(event);
}

}  // namespace

// One Results call. Everything but `writing`, `hello_sent` and `finished` belongs to the link's
// thread or, while `writing`, to the write. Those three are guarded by the link's mutex.
struct ResultsLink::Connection {
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  v1::ResultsAck ack;
  grpc::Status status;
  std::unique_ptr<grpc::ClientAsyncWriter<v1::ResultMessage>> writer;
  v1::ResultMessage out;
  bool writing = true;  // until the call has started
  bool hello_sent = false;
  bool finished = false;
};

ResultsLink::ResultsLink(InternalClient* client, const ResultsLinkOptions& options)
    : client_(client), options_(options), may_dial_(options.dial_at_once) {
  thread_ = std::thread([this] { Run(); });
}

ResultsLink::~ResultsLink() {
  std::shared_ptr<Connection> connection;
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    connection = connection_;
  }
  if (connection != nullptr) connection->context.TryCancel();
  state_changed_.NotifyAll();
  thread_.join();
}

void ResultsLink::Dial() {
  {
    MutexLock lock(mutex_);
    may_dial_ = true;
  }
  state_changed_.NotifyAll();
}

void ResultsLink::Push(v1::StepResult result) {
  {
    MutexLock lock(mutex_);
    // A result of a newer epoch says that nobody waits for those before it.
    while (!waiting_.empty() && (waiting_.front().epoch() < result.epoch() ||
                                 waiting_.size() >= options_.max_waiting_results)) {
      waiting_.pop_front();
    }
    waiting_.push_back(std::move(result));
  }
  Write();
}

void ResultsLink::Write() {
  std::shared_ptr<Connection> connection;
  {
    MutexLock lock(mutex_);
    if (connection_ == nullptr || connection_->writing || connection_->finished) return;
    if (connection_->hello_sent && waiting_.empty()) return;
    connection = connection_;
    connection->writing = true;
    if (!connection->hello_sent) {
      connection->hello_sent = true;
      connection->out.mutable_hello()->set_group(options_.group);
    } else {
      *connection->out.mutable_result() = std::move(waiting_.front());
      waiting_.pop_front();
    }
  }
  // The call and its queue stay until this write has come back.
  connection->writer->Write(connection->out, Tag(Event::kWritten));
}

void ResultsLink::TakeBack(Connection* connection) {
  if (!connection->out.has_result()) return;
  v1::StepResult& result = *connection->out.mutable_result();
  MutexLock lock(mutex_);
  if (waiting_.empty() || waiting_.front().epoch() == result.epoch()) {
    waiting_.push_front(std::move(result));
  }
}

void ResultsLink::Serve() {
  auto connection = std::make_shared<Connection>();
  client_->Authorize(&connection->context);
  // A channel connects only while somebody polls one of its queues, so the call waits for it:
  // between calls nobody does, and a coordinator that is back would be noticed seconds later.
  connection->context.set_wait_for_ready(true);
  connection->writer = client_->stub().PrepareAsyncResults(&connection->context, &connection->ack,
                                                           &connection->queue);
  connection->writer->StartCall(Tag(Event::kStarted));
  connection->writer->Finish(&connection->status, Tag(Event::kFinished));
  {
    MutexLock lock(mutex_);
    connection_ = connection;
    if (stopping_) connection->context.TryCancel();
  }
  void* tag = nullptr;
  bool ok = false;
  bool open = true;
  while (open && connection->queue.Next(&tag, &ok)) {
    if (tag == Tag(Event::kWritten) && !ok) TakeBack(connection.get());
    {
      MutexLock lock(mutex_);
      // After a failed write nothing more is written; the end of the call follows by itself.
      if (tag == Tag(Event::kFinished)) {
        connection->finished = true;
      } else {
        connection->writing = false;
        if (!ok) connection->context.TryCancel();
      }
      open = connection->writing || !connection->finished;
    }
    if (ok && tag != Tag(Event::kFinished)) Write();
  }
  {
    MutexLock lock(mutex_);
    connection_.reset();
  }
  connection->queue.Shutdown();
  while (connection->queue.Next(&tag, &ok)) {
  }
  LOG_DEBUG("the results stream ended: {}", FromGrpc(connection->status).ToString());
}

void ResultsLink::Run() {
  {
    MutexLock lock(mutex_);
    while (!stopping_ && !may_dial_) state_changed_.Wait(mutex_);
    if (stopping_) return;
  }
  Redial redial(options_.redial);
  while (true) {
    const auto begun = std::chrono::steady_clock::now();
    Serve();
    if (std::chrono::steady_clock::now() - begun > kGood) redial.Reset();
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
