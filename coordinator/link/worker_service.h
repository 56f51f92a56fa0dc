// The internal service pergola.v1.Worker: checks the join token, names connections, and hands
// messages to the engine.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "coordinator/engine/engine.h"
#include "coordinator/link/results_call.h"
#include "coordinator/link/token_check.h"
#include "pergola/v1/worker.grpc.pb.h"

namespace pergola {

class WorkerService final : public v1::Worker::CallbackService {
 public:
  // Both borrowed; they outlive the service and its calls.
  WorkerService(Engine* engine, const TokenCheck* token) : engine_(engine), token_(token) {}

  grpc::ServerBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>* Attach(
      grpc::CallbackServerContext* context) override;
  grpc::ServerReadReactor<v1::ResultMessage>* Results(grpc::CallbackServerContext* context,
                                                      v1::ResultsAck* response) override;
  grpc::ServerUnaryReactor* ReportFault(grpc::CallbackServerContext* context,
                                        const v1::Fault* request, v1::FaultAck* response) override;

 private:
  // One Results stream per group name: a newer one ends the older.
  void Named(const std::string& group, const std::shared_ptr<ResultsCall>& call);

  Engine* const engine_;
  const TokenCheck* const token_;
  std::atomic<uint64_t> next_connection_{1};
  Mutex mutex_;
  std::map<std::string, std::weak_ptr<ResultsCall>> results_ GUARDED_BY(mutex_);
};

}  // namespace pergola
