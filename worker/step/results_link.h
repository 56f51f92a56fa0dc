// The last stage's Results: one StepResult per plan to the coordinator. Redials by itself for as
// long as it lives; rank 0's CoordinatorLink decides when a group without coordinator ends.
//
// On a completion queue instead of a callback reactor: a reactor that may write at any time learns
// of the call's end only by a failed write, but a coordinator without this stream sends no plan, so
// there would be none to write.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>

#include "base/mutex.h"
#include "pergola/v1/worker.pb.h"
#include "worker/step/internal_client.h"
#include "worker/step/plan_source.h"

namespace pergola {

struct ResultsLinkOptions {
  std::string group;
  // A coordinator may know the group only a moment after the first attempt, and the first result
  // waits for this link.
  RedialOptions redial = {100, 1000};
  // Results that wait for a connection; more than any depth in flight. The oldest are dropped:
  // their epoch is over.
  size_t max_waiting_results = 4200;
  // False: only after Dial(). A stream of this name ends the one of a running group, so a group
  // that still loads must not have one.
  bool dial_at_once = true;
};

class ResultsLink : public ResultSink {
 public:
  // `client` is borrowed and outlives the link. Its thread exists from here on.
  ResultsLink(InternalClient* client, const ResultsLinkOptions& options);
  ~ResultsLink() override;

  // Begins to dial if that was not done at once. Any thread.
  void Dial();

  void Push(v1::StepResult result) override;

 private:
  struct Connection;

  void Run();
  void Serve();
  // Starts the next write if there is something to write and no write under way. Any thread.
  void Write();
  // A result whose write failed goes out first on the next connection.
  void TakeBack(Connection* connection);

  InternalClient* const client_;
  const ResultsLinkOptions options_;

  Mutex mutex_;
  CondVar state_changed_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool may_dial_ GUARDED_BY(mutex_);
  std::deque<v1::StepResult> waiting_ GUARDED_BY(mutex_);
  // The present call; shared with a Push that starts a write on it.
  std::shared_ptr<Connection> connection_ GUARDED_BY(mutex_);

  std::thread thread_;
};

}  // namespace pergola
