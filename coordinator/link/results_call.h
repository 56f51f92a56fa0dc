// One Results stream: the group's name, then its StepResults. Moves messages and keeps their order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "coordinator/doors/grpc_bytes.h"
#include "coordinator/engine/engine.h"
#include "pergola/v1/worker.grpc.pb.h"

namespace pergola {

class ResultsCall final : public grpc::ServerReadReactor<v1::ResultMessage>,
                          public std::enable_shared_from_this<ResultsCall> {
 public:
  using Register = std::function<void(const std::string& group, std::shared_ptr<ResultsCall>)>;

  // `on_named` runs once, when the first message named the group.
  static ResultsCall* Start(Engine* engine, uint64_t connection, Register on_named);
  ResultsCall(Engine* engine, uint64_t connection, Register on_named)
      : engine_(engine), connection_(connection), on_named_(std::move(on_named)) {}

  void OnReadDone(bool ok) override;
  void OnDone() override;
  // Ends the stream; from any thread.
  void Close(const absl::Status& status);

 private:
  absl::Status Handle();

  Engine* const engine_;
  const uint64_t connection_;
  const Register on_named_;
  std::shared_ptr<ResultsCall>
      self_;  // the second owner is the service while it ends this for a newer one
  v1::ResultMessage in_;

  Mutex mutex_;
  std::string group_ GUARDED_BY(mutex_);
  bool ended_ GUARDED_BY(mutex_) = false;
};

}  // namespace pergola
