// The last stage's Results: one StepResult per plan to the coordinator. Redials by itself for as
// long as it lives; rank 0's CoordinatorLink decides when a group without coordinator ends.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/status/status.h"
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
};

class ResultsLink : public ResultSink {
 public:
  // `client` is borrowed and outlives the link. Dialling begins at once.
  ResultsLink(InternalClient* client, const ResultsLinkOptions& options);
  ~ResultsLink() override;

  void Push(v1::StepResult result) override;

 private:
  class Connection;

  void Run();
  void Serve();
  std::optional<v1::ResultMessage> NextMessage(Connection* connection);
  // A result whose write failed: it goes out first on the next connection.
  void TakeBack(v1::StepResult result);
  void Ended(const absl::Status& status);

  InternalClient* const client_;
  const ResultsLinkOptions options_;

  Mutex mutex_;
  CondVar state_changed_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  bool hello_sent_ GUARDED_BY(mutex_) = false;  // on this connection
  std::deque<v1::StepResult> waiting_ GUARDED_BY(mutex_);
  std::shared_ptr<Connection> connection_ GUARDED_BY(mutex_);  // shared with writers
  bool connection_ended_ GUARDED_BY(mutex_) = false;

  std::thread thread_;
};

}  // namespace pergola
