#include "worker/step/coordinator_link.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "base/status.h"

namespace pergola {
namespace {

int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::chrono::steady_clock::time_point AtMs(int64_t ms) {
  return std::chrono::steady_clock::time_point(std::chrono::milliseconds(ms));
}

// Refusals that the next attempt would meet again. Once attached, only the word that a newer group
// has this name.
bool IsFinal(const absl::Status& status, bool was_attached) {
  if (was_attached) return status.code() == absl::StatusCode::kAborted;
  switch (status.code()) {
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

}  // namespace

// One Attach call. Lives until OnDone; the link outlives it.
class CoordinatorLink::Connection
    : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage> {
 public:
  explicit Connection(CoordinatorLink* link) : link_(link) {
    link_->client_->Authorize(&context_);
    link_->client_->stub().async()->Attach(&context_, this);
    // Writes start from other threads: each holds the call for itself, and this hold, released when
    // the reading side ends, is there whenever one of them begins.
    AddHold();
    StartRead(&in_);
    StartCall();
  }

  // Writes what waits, unless a write is under way. Any thread but a callback under the link's
  // lock.
  void Write() {
    {
      MutexLock lock(mutex_);
      if (writing_ || ended_) return;
      std::optional<v1::WorkerMessage> message = link_->NextMessage(this);
      if (!message) return;
      out_ = *std::move(message);
      writing_ = true;
      AddHold();
    }
    StartWrite(&out_);
    RemoveHold();
  }

  void Cancel(const std::string& why) {
    {
      MutexLock lock(mutex_);
      if (why_.empty()) why_ = why;
    }
    context_.TryCancel();
  }

  void OnReadDone(bool ok) override {
    std::string problem;
    if (ok && link_->Accept(&in_, &problem)) {
      StartRead(&in_);
      return;
    }
    if (ok) Cancel(problem);
    {
      MutexLock lock(mutex_);
      ended_ = true;
    }
    RemoveHold();
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(mutex_);
      writing_ = false;
      if (!ok) return;
    }
    Write();
  }

  void OnDone(const grpc::Status& status) override {
    absl::Status end = FromGrpc(status);
    {
      MutexLock lock(mutex_);
      if (!why_.empty()) end = absl::UnavailableError(why_);
    }
    link_->Ended(end);
  }

 private:
  CoordinatorLink* const link_;
  grpc::ClientContext context_;
  v1::CoordinatorMessage in_;
  v1::WorkerMessage out_;
  Mutex mutex_;
  bool writing_ GUARDED_BY(mutex_) = false;
  bool ended_ GUARDED_BY(mutex_) = false;
  std::string why_ GUARDED_BY(mutex_);  // this side cancelled
};

CoordinatorLink::CoordinatorLink(InternalClient* client, const CoordinatorLinkOptions& options)
    : client_(client), options_(options) {
  thread_ = std::thread([this] { Run(); });
}

CoordinatorLink::~CoordinatorLink() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  state_changed_.NotifyAll();
  plans_changed_.NotifyAll();
  thread_.join();
}

void CoordinatorLink::ReportProgress(const std::string& phase, int64_t bytes_done,
                                     int64_t bytes_total) {
  std::shared_ptr<Connection> connection;
  {
    MutexLock lock(mutex_);
    progress_.emplace();
    progress_->set_group(options_.group);
    progress_->set_phase(phase);
    progress_->set_bytes_done(bytes_done);
    progress_->set_bytes_total(bytes_total);
    connection = connection_;
  }
  if (connection != nullptr) connection->Write();
}

void CoordinatorLink::SendHello(v1::Hello hello) {
  std::shared_ptr<Connection> connection;
  {
    MutexLock lock(mutex_);
    progress_.reset();
    hello_ = std::move(hello);
    connection = connection_;
  }
  if (connection != nullptr) connection->Write();
}

std::optional<v1::WorkerMessage> CoordinatorLink::NextMessage(Connection* connection) {
  MutexLock lock(mutex_);
  if (connection_.get() != connection) return std::nullopt;
  v1::WorkerMessage message;
  if (progress_) {
    *message.mutable_progress() = *progress_;
    progress_.reset();
    return message;
  }
  if (!hello_ || hello_sent_) return std::nullopt;
  *message.mutable_hello() = *hello_;
  message.mutable_hello()->set_last_epoch(last_epoch_);
  hello_sent_ = true;
  return message;
}

bool CoordinatorLink::Accept(v1::CoordinatorMessage* message, std::string* problem) {
  {
    MutexLock lock(mutex_);
    last_heard_ms_ = NowMs();
    if (message->has_welcome()) {
      const uint64_t epoch = message->welcome().epoch();
      if (!hello_sent_ || epoch_ != 0 || epoch <= last_epoch_) {
        *problem = absl::StrCat("the coordinator sent Welcome with epoch ", epoch, " after epoch ",
                                last_epoch_);
        return false;
      }
      epoch_ = last_epoch_ = epoch;
      LOG_INFO("attached to the coordinator at {} as {}, epoch {}", client_->address(),
               options_.group, epoch);
      return true;
    }
    if (!message->has_plan() || epoch_ == 0 || message->plan().epoch() != epoch_) {
      *problem = absl::StrCat("the coordinator sent a plan of epoch ", message->plan().epoch(),
                              "; this connection's epoch is ", epoch_);
      return false;
    }
    if (static_cast<int64_t>(waiting_.size()) >= options_.max_waiting_plans) {
      *problem = absl::StrCat("the coordinator sent more than ", options_.max_waiting_plans,
                              " plans ahead");
      return false;
    }
    waiting_.push_back(std::move(*message->mutable_plan()));
  }
  plans_changed_.NotifyAll();
  return true;
}

void CoordinatorLink::Ended(const absl::Status& status) {
  MutexLock lock(mutex_);
  // The group has not begun these; whoever reads the next epoch's first plan forgets the rest.
  waiting_.clear();
  epoch_ = 0;
  connection_end_ = status.ok() ? absl::UnavailableError("the coordinator ended the call") : status;
  // Under the lock: the thread that waits for this may destroy the link next.
  state_changed_.NotifyAll();
}

absl::StatusOr<PlanSource::Next> CoordinatorLink::Take(bool wait, v1::StepPlan* plan) {
  MutexLock lock(mutex_);
  const int64_t deadline_ms = NowMs() + kTickMs;
  while (wait && waiting_.empty() && end_.ok() && !stopping_) {
    if (!plans_changed_.WaitUntil(mutex_, AtMs(deadline_ms))) break;
  }
  if (!end_.ok()) return end_;
  if (stopping_) return Next::kEnd;
  if (waiting_.empty()) return Next::kNone;
  *plan = std::move(waiting_.front());
  waiting_.pop_front();
  return Next::kPlan;
}

int CoordinatorLink::exit_code() {
  MutexLock lock(mutex_);
  return exit_code_;
}

void CoordinatorLink::End(int exit_code, absl::Status status) {
  {
    MutexLock lock(mutex_);
    exit_code_ = exit_code;
    end_ = std::move(status);
  }
  plans_changed_.NotifyAll();
}

bool CoordinatorLink::SleepUntil(int64_t deadline_ms) {
  MutexLock lock(mutex_);
  while (!stopping_ && NowMs() < deadline_ms) state_changed_.WaitUntil(mutex_, AtMs(deadline_ms));
  return stopping_;
}

absl::Status CoordinatorLink::Serve() {
  {
    MutexLock lock(mutex_);
    hello_sent_ = false;
    connection_end_.reset();
    last_heard_ms_ = NowMs();
  }
  auto connection = std::make_shared<Connection>(this);
  {
    MutexLock lock(mutex_);
    connection_ = connection;
  }
  connection->Write();
  std::string cancel;
  MutexLock lock(mutex_);
  while (!connection_end_) {
    const bool silent = epoch_ != 0 && NowMs() - last_heard_ms_ > options_.silence_ms;
    if (cancel.empty() && (stopping_ || silent)) {
      cancel = stopping_ ? "this rank ends"
                         : absl::StrCat("nothing came for ", options_.silence_ms, " ms");
      mutex_.unlock();
      connection->Cancel(cancel);
      mutex_.lock();
      continue;
    }
    state_changed_.WaitUntil(mutex_, AtMs(NowMs() + 500));
  }
  connection_.reset();
  return *connection_end_;
}

void CoordinatorLink::Run() {
  Redial redial(options_.redial);
  int64_t alone_since_ms = NowMs();
  bool told = false;
  while (true) {
    uint64_t epoch_before = 0;
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      epoch_before = last_epoch_;
    }
    const absl::Status ended = Serve();
    bool was_attached = false;
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      was_attached = last_epoch_ != epoch_before;
    }
    if (IsFinal(ended, was_attached)) {
      return End(kExitUsage, Prefixed(ended, absl::StrCat("the coordinator at ", client_->address(),
                                                          " refuses this group")));
    }
    if (was_attached) {
      redial.Reset();
      alone_since_ms = NowMs();
      told = false;
    }
    if (!told) {
      LOG_WARN("no coordinator at {}: {}; dialling again for {} ms", client_->address(),
               std::string(ended.message()), options_.orphan_timeout_ms);
      told = true;
    }
    const int64_t orphaned_at_ms = alone_since_ms + options_.orphan_timeout_ms;
    if (NowMs() >= orphaned_at_ms) {
      return End(kExitOrphaned, absl::DeadlineExceededError(absl::StrCat(
                                    "no coordinator at ", client_->address(), " for ",
                                    options_.orphan_timeout_ms, " ms: ", ended.message())));
    }
    if (SleepUntil(std::min(orphaned_at_ms, NowMs() + redial.NextDelayMs()))) return;
  }
}

}  // namespace pergola
