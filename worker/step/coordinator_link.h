// Rank 0's Attach: progress while loading, Hello, then plans into an inbox for the step loop. One
// thread dials, watches and redials; gRPC's threads only move messages. A break ends nothing: plans
// of the broken epoch are dropped, and the group waits for a coordinator until the orphan timeout.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "pergola/v1/worker.pb.h"
#include "worker/step/internal_client.h"
#include "worker/step/plan_source.h"

namespace pergola {

struct CoordinatorLinkOptions {
  std::string group;
  RedialOptions redial;
  int64_t orphan_timeout_ms = 600'000;
  // A connection on which nothing comes for so long is dead: the coordinator sends a plan at least
  // once a second unless earlier ones are unanswered, and those it gives up before this.
  int64_t silence_ms = 90'000;
  // Plans that wait; the coordinator sends at most stages + 1 ahead, so more is a broken peer.
  int64_t max_waiting_plans = 4200;
};

class CoordinatorLink : public PlanSource {
 public:
  // `client` is borrowed and outlives the link. Dialling begins at once.
  CoordinatorLink(InternalClient* client, const CoordinatorLinkOptions& options);
  // Ends the connection and the thread.
  ~CoordinatorLink() override;

  // The newest state replaces one that was not sent yet. Any thread.
  void ReportProgress(const std::string& phase, int64_t bytes_done, int64_t bytes_total);
  // Called once, when the group can execute plans; also repeated on every later connection.
  void SendHello(v1::Hello hello);

  absl::StatusOr<Next> Take(bool wait, v1::StepPlan* plan) override;

  // The exit code for the error that Take returned: kExitUsage if the coordinator refuses this
  // group, kExitOrphaned if there was none for too long. 0: no such error.
  int exit_code();

 private:
  class Connection;

  void Run();
  // Starts a call, waits for its end and returns how it ended.
  absl::Status Serve();
  // Wakes the thread at `deadline_ms` of the steady clock at the latest; true if stopping.
  bool SleepUntil(int64_t deadline_ms);
  void End(int exit_code, absl::Status status);

  // From a connection's callbacks.
  std::optional<v1::WorkerMessage> NextMessage(Connection* connection);
  // False: the peer breaks the protocol; `problem` says how.
  bool Accept(v1::CoordinatorMessage* message, std::string* problem);
  void Ended(const absl::Status& status);

  InternalClient* const client_;
  const CoordinatorLinkOptions options_;

  Mutex mutex_;
  CondVar plans_changed_;  // for Take
  CondVar state_changed_;  // for the thread
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::optional<v1::Progress> progress_ GUARDED_BY(mutex_);  // not sent yet
  std::optional<v1::Hello> hello_ GUARDED_BY(mutex_);
  bool hello_sent_ GUARDED_BY(mutex_) = false;  // on this connection
  uint64_t epoch_ GUARDED_BY(mutex_) = 0;       // of this connection; 0: no Welcome yet
  uint64_t last_epoch_ GUARDED_BY(mutex_) = 0;
  int64_t last_heard_ms_ GUARDED_BY(mutex_) = 0;
  std::deque<v1::StepPlan> waiting_ GUARDED_BY(mutex_);
  std::shared_ptr<Connection> connection_ GUARDED_BY(mutex_);  // shared with writers
  std::optional<absl::Status> connection_end_ GUARDED_BY(mutex_);
  int exit_code_ GUARDED_BY(mutex_) = 0;
  absl::Status end_ GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace pergola
