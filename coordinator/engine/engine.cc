#include "coordinator/engine/engine.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/status.h"
#include "coordinator/engine/engine_core.h"
#include "coordinator/engine/request_log.h"
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

// Nobody outside may know the keys of the prefix cache, or they could make two prompts of one key.
EngineOptions WithSecret(EngineOptions options) {
  if (!(options.prefix_secret == PrefixKey())) return options;
  std::random_device random;
  const auto draw = [&random] { return uint64_t{random()} << 32 | random(); };
  options.prefix_secret.low = draw();
  options.prefix_secret.high = draw();
  return options;
}

std::unique_ptr<RequestLog> MakeRequestLog(const EngineOptions& options) {
  if (!options.log_requests) return nullptr;
  return std::make_unique<RequestLog>([](const std::string& line) { LOG_INFO("{}", line); });
}

}  // namespace

class Engine::Impl {
 public:
  Impl(EngineOptions options, const std::string& trace_path)
      : options_(WithSecret(std::move(options))),
        trace_(trace_path.empty() ? nullptr : std::make_unique<Trace>(trace_path)),
        log_(MakeRequestLog(options_)),
        core_(options_, SteadyNowUs(), trace_.get()) {
    if (log_ != nullptr) {
      core_.OnSequenceEnd([this](SequenceEnd end) { log_->Ended(std::move(end)); });
    }
    thread_ = std::thread([this] { Run(); });
  }

  ~Impl() { Stop(); }

  absl::StatusOr<SequenceId> Submit(SequenceRequest request) {
    absl::StatusOr<SequenceId> id = TrySubmit(request);
    if (!id.ok()) CountRefusal(RefusalReason(id.status()), request.request_id, id.status());
    return id;
  }

  void CountRefusal(const std::string& reason, const std::string& request_id,
                    const absl::Status& status) {
    {
      MutexLock lock(mutex_);
      for (int i = 0; i < kRefusals; ++i) {
        if (reason == RefusalName(static_cast<Refusal>(i))) ++refusals_[i];
      }
    }
    if (log_ != nullptr) log_->Refused(reason, request_id, status);
  }

  // Takes `request` only if it is accepted.
  absl::StatusOr<SequenceId> TrySubmit(SequenceRequest& request) {
    Asked asked;
    asked.prompt_tokens = request.prompt_ids.size() + request.received_ids.size();
    asked.least_new_tokens = request.least_new_tokens;
    asked.deadline = request.deadline;
    const auto bytes = static_cast<int64_t>(asked.prompt_tokens * sizeof(int32_t));
    const TimeUs asked_at = SteadyNowUs();
    MutexLock lock(mutex_);
    if (stopping_) return RefusalStatus(Refusal::kDraining, "the coordinator stops", -1);
    if (draining_) return RefusalStatus(Refusal::kDraining, "the coordinator drains", -1);
    Load load = core_load_;
    load.queued += uint64_t{inbox_queued_} + batch_queued_;
    load.queued_bytes += inbox_queued_bytes_ + batch_queued_bytes_;
    RETURN_IF_ERROR(CheckLoad(options_, load, asked, asked_at));
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
    const bool posted = Post([this, done](EngineCore& core, TimeUs now) {
      v1::StatusResponse status = core.Status(now);
      AddRefusals(&status);
      done(std::move(status));
    });
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
    if (log_ != nullptr) log_->Stop();
  }

 private:
  void AddRefusals(v1::StatusResponse* status) {
    MutexLock lock(mutex_);
    for (int i = 0; i < kRefusals; ++i) {
      if (refusals_[i] == 0) continue;
      (*status->mutable_refusals())[RefusalName(static_cast<Refusal>(i))] = refusals_[i];
    }
  }

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
      Publish(now);
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

  void Publish(TimeUs now) {
    const Load load = core_.load(now);
    const bool serving = core_.serving();
    const bool limits_changed = core_.limits_version() != published_limits_;
    {
      MutexLock lock(mutex_);
      core_load_ = load;
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
  int64_t inbox_queued_bytes_ GUARDED_BY(mutex_) = 0;
  int64_t batch_queued_bytes_ GUARDED_BY(mutex_) = 0;
  Load core_load_ GUARDED_BY(mutex_);
  std::array<uint64_t, kRefusals> refusals_ GUARDED_BY(mutex_) = {};
  ServingLimits limits_ GUARDED_BY(mutex_);
  Mutex join_mutex_;  // two threads may call Stop()

  // The engine thread's own.
  const std::unique_ptr<Trace> trace_;
  const std::unique_ptr<RequestLog> log_;  // null: nobody asked; doors refuse through it as well
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

void Engine::CountRefusal(Refusal refusal, const std::string& request_id,
                          const absl::Status& status) {
  impl_->CountRefusal(RefusalName(refusal), request_id, status);
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
