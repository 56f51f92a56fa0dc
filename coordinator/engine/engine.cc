#include "coordinator/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "coordinator/engine/engine_core.h"
#include "coordinator/engine/trace.h"

namespace pergola {
namespace {

// What a peer may have in the inbox. A group that behaves has at most depth results there (stages +
// 1), and its progress is for people: beyond the bound messages are dropped, and a group whose
// result was dropped is lost by the gap. The other kinds are bounded by what is outstanding:
// submits by max_queued_sequences, cancels by the sequences doors hold, attaches, status and drain
// calls by open calls.
constexpr uint32_t kMaxPeerMessages = 16384;
// The engine looks around at least so often, whatever NextWake() says.
constexpr TimeUs kMaxSleepUs = 1'000'000;

}  // namespace

class Engine::Impl {
 public:
  Impl(EngineOptions options, const std::string& trace_path)
      : options_(std::move(options)),
        trace_(trace_path.empty() ? nullptr : std::make_unique<Trace>(trace_path)),
        core_(options_, SteadyNowUs(), trace_.get()),
        thread_([this] { Run(); }) {}

  ~Impl() { Stop(); }

  absl::StatusOr<SequenceId> Submit(SequenceRequest request) {
    const auto bytes = static_cast<int64_t>(
        (request.prompt_ids.size() + request.received_ids.size()) * sizeof(int32_t));
    MutexLock lock(mutex_);
    if (stopping_) return absl::UnavailableError("the coordinator stops");
    if (draining_) return absl::UnavailableError("the coordinator drains");
    const uint64_t queued = uint64_t{core_queued_} + inbox_queued_ + batch_queued_;
    if (queued >= options_.max_queued_sequences) {
      return absl::ResourceExhaustedError(absl::StrCat("the waiting queue is full: ", queued,
                                                       " of ", options_.max_queued_sequences,
                                                       " sequences"));
    }
    const int64_t queued_bytes = core_queued_bytes_ + inbox_queued_bytes_ + batch_queued_bytes_;
    if (bytes > options_.max_queued_bytes - queued_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat("the waiting queue is full: ", queued_bytes,
                                                       " bytes of prompts and ", bytes,
                                                       " more exceed ", options_.max_queued_bytes));
    }
    ++inbox_queued_;
    inbox_queued_bytes_ += bytes;
    const SequenceId id = ++last_id_;
    PushLocked([id, request = std::move(request)](EngineCore& core, TimeUs now) mutable {
      core.Submit(id, std::move(request), now);
    });
    return id;
  }

  using Message = absl::AnyInvocable<void(EngineCore&, TimeUs)>;

  // False once stopped: the message is dropped.
  bool Post(Message message) {
    MutexLock lock(mutex_);
    if (stopping_) return false;
    PushLocked(std::move(message));
    return true;
  }

  void PostFromPeer(Message message) {
    MutexLock lock(mutex_);
    if (stopping_) return;
    if (++peer_messages_ > kMaxPeerMessages) {
      if (peer_messages_ == kMaxPeerMessages + 1) {
        LOG_ERROR("more than {} messages of workers wait for the engine: dropping",
                  kMaxPeerMessages);
      }
      return;
    }
    PushLocked(std::move(message));
  }

  ServingLimits limits() {
    MutexLock lock(mutex_);
    return limits_;
  }

  void Status(const std::function<void(v1::StatusResponse)>& done) {
    const bool posted = Post([done](EngineCore& core, TimeUs now) { done(core.Status(now)); });
    if (posted) return;
    v1::StatusResponse stopped;
    stopped.set_draining(true);
    done(stopped);
  }

  void Drain(int64_t timeout_us, const std::function<void(v1::DrainResponse)>& done) {
    bool posted = false;
    {
      MutexLock lock(mutex_);
      draining_ = true;
      if (!stopping_) {
        posted = true;
        PushLocked([timeout_us, done](EngineCore& core, TimeUs now) {
          core.Drain(timeout_us, done, now);
        });
      }
    }
    if (!posted) done(v1::DrainResponse());
  }

  bool draining() {
    MutexLock lock(mutex_);
    return draining_;
  }

  void OnServingChanged(std::function<void(bool)> callback) {
    Post([this, callback = std::move(callback)](EngineCore&, TimeUs) mutable {
      on_serving_changed_ = std::move(callback);
      // Told from the start: a group may have come before the callback.
      if (serving_ && on_serving_changed_) on_serving_changed_(true);
    });
  }

  void Stop() {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
      wake_.NotifyOne();
    }
    MutexLock lock(join_mutex_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  void PushLocked(Message message) REQUIRES(mutex_) {
    inbox_.push_back(std::move(message));
    if (inbox_.size() == 1) wake_.NotifyOne();
  }

  void Run() {
    std::vector<Message> batch;
    TimeUs wake = kNever;
    for (bool last = false; !last;) {
      last = TakeBatch(wake, &batch);
      const TimeUs now = SteadyNowUs();
      for (Message& message : batch) message(core_, now);
      batch.clear();
      if (last) core_.Shutdown(absl::UnavailableError("the coordinator stops"), now);
      core_.Advance(now);
      Publish();
      wake = core_.NextWake();
    }
    if (serving_ && on_serving_changed_) on_serving_changed_(false);
    if (trace_ != nullptr) trace_->Close();
  }

  // Waits for messages, a stop (true) or the time. `batch` comes empty.
  bool TakeBatch(TimeUs wake, std::vector<Message>* batch) {
    const TimeUs latest = std::min(wake, SteadyNowUs() + kMaxSleepUs);
    const std::chrono::steady_clock::time_point until{std::chrono::microseconds(latest)};
    MutexLock lock(mutex_);
    while (inbox_.empty() && !stopping_) {
      if (!wake_.WaitUntil(mutex_, until)) break;
    }
    batch->swap(inbox_);
    batch_queued_ = std::exchange(inbox_queued_, 0);
    batch_queued_bytes_ = std::exchange(inbox_queued_bytes_, 0);
    peer_messages_ = 0;
    return stopping_;
  }

  void Publish() {
    const bool serving = core_.serving();
    const bool limits_changed = core_.limits_version() != published_limits_;
    {
      MutexLock lock(mutex_);
      core_queued_ = core_.queued();
      core_queued_bytes_ = core_.queued_bytes();
      batch_queued_ = 0;
      batch_queued_bytes_ = 0;
      if (limits_changed) limits_ = core_.limits();
    }
    published_limits_ = core_.limits_version();
    if (serving == serving_) return;
    serving_ = serving;
    LOG_INFO("{}", serving ? "serving" : "not serving");
    if (on_serving_changed_) on_serving_changed_(serving);
  }

  const EngineOptions options_;
  Mutex mutex_;
  CondVar wake_;
  std::vector<Message> inbox_ GUARDED_BY(mutex_);
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool draining_ GUARDED_BY(mutex_) = false;
  SequenceId last_id_ GUARDED_BY(mutex_) = 0;
  uint32_t peer_messages_ GUARDED_BY(mutex_) = 0;
  // Sequences that hold a place in the waiting queue: still in the inbox, being handed over, in the
  // core's queue.
  uint32_t inbox_queued_ GUARDED_BY(mutex_) = 0;
  uint32_t batch_queued_ GUARDED_BY(mutex_) = 0;
  uint32_t core_queued_ GUARDED_BY(mutex_) = 0;
  int64_t inbox_queued_bytes_ GUARDED_BY(mutex_) = 0;
  int64_t batch_queued_bytes_ GUARDED_BY(mutex_) = 0;
  int64_t core_queued_bytes_ GUARDED_BY(mutex_) = 0;
  ServingLimits limits_ GUARDED_BY(mutex_);
  Mutex join_mutex_;  // two threads may call Stop()

  // The engine thread's own.
  const std::unique_ptr<Trace> trace_;
  EngineCore core_;
  bool serving_ = false;
  uint64_t published_limits_ = 0;
  std::function<void(bool)> on_serving_changed_;

  std::thread thread_;  // last: it uses all of the above
};

Engine::Engine(EngineOptions options, const std::string& trace_path)
    : impl_(std::make_unique<Impl>(std::move(options), trace_path)) {}

Engine::~Engine() = default;

absl::StatusOr<SequenceId> Engine::Submit(SequenceRequest request) {
  return impl_->Submit(std::move(request));
}

void Engine::Cancel(SequenceId id, absl::Status status) {
  impl_->Post([id, status = std::move(status)](EngineCore& core, TimeUs now) {
    core.Cancel(id, status, now);
  });
}

ServingLimits Engine::limits() const {
  return impl_->limits();
}

void Engine::Status(const std::function<void(v1::StatusResponse)>& done) {
  impl_->Status(done);
}

void Engine::Drain(int64_t timeout_us, const std::function<void(v1::DrainResponse)>& done) {
  impl_->Drain(timeout_us, done);
}

bool Engine::draining() const {
  return impl_->draining();
}

void Engine::OnServingChanged(std::function<void(bool serving)> callback) {
  impl_->OnServingChanged(std::move(callback));
}

void Engine::GroupProgress(uint64_t connection, v1::Progress progress) {
  impl_->PostFromPeer(
      [connection, progress = std::move(progress)](EngineCore& core, TimeUs now) mutable {
        core.GroupProgress(connection, std::move(progress), now);
      });
}

void Engine::GroupAttached(uint64_t connection, v1::Hello hello, std::shared_ptr<GroupLink> link) {
  impl_->Post([connection, hello = std::move(hello), link = std::move(link)](EngineCore& core,
                                                                             TimeUs now) mutable {
    core.GroupAttached(connection, std::move(hello), std::move(link), now);
  });
}

void Engine::ResultsConnected(std::string group, uint64_t connection) {
  impl_->Post([group = std::move(group), connection](EngineCore& core, TimeUs now) {
    core.ResultsConnected(group, connection, now);
  });
}

void Engine::ResultsLost(std::string group, uint64_t connection) {
  impl_->Post([group = std::move(group), connection](EngineCore& core, TimeUs now) {
    core.ResultsLost(group, connection, now);
  });
}

void Engine::GroupResult(std::string group, v1::StepResult result) {
  impl_->PostFromPeer([group = std::move(group), result = std::move(result)](
                          EngineCore& core, TimeUs now) { core.GroupResult(group, result, now); });
}

void Engine::GroupFault(v1::Fault fault) {
  impl_->PostFromPeer(
      [fault = std::move(fault)](EngineCore& core, TimeUs now) { core.GroupFault(fault, now); });
}

void Engine::GroupLost(uint64_t connection, absl::Status why) {
  impl_->Post([connection, why = std::move(why)](EngineCore& core, TimeUs now) {
    core.GroupLost(connection, why, now);
  });
}

void Engine::Stop() {
  impl_->Stop();
}

}  // namespace pergola
