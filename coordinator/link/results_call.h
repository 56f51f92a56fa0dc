// One Results stream: the group's name, then its StepResults. Moves messages and keeps their order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "coordinator/engine/engine.h"
#include "coordinator/link/open_calls.h"
#include "grpcpp/generic/async_generic_service.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

class ResultsCall final : public grpc::ServerGenericBidiReactor,
                          public std::enable_shared_from_this<ResultsCall> {
 public:
  using Register = std::function<void(const std::string& group, std::shared_ptr<ResultsCall>)>;

  // `on_named` runs once, when the first message named the group.
  static ResultsCall* Start(Engine* engine, OpenCalls* open, uint64_t connection,
                            Register on_named);
  ResultsCall(Engine* engine, OpenCalls* open, uint64_t connection, Register on_named)
      : engine_(engine), open_(open), connection_(connection), on_named_(std::move(on_named)) {}

  void OnReadDone(bool ok) override;
  void OnDone() override;
  // Ends the stream, with the answer if the status is OK; from any thread.
  void Close(const absl::Status& status);

 private:
  absl::Status Handle();

  Engine* const engine_;
  OpenCalls* const open_;
  const uint64_t connection_;
  const Register on_named_;
  std::shared_ptr<ResultsCall>
      self_;  // the second owner is the service while it ends this for a newer one
  grpc::ByteBuffer in_;
  grpc::ByteBuffer out_;

  Mutex mutex_;
  std::string group_ GUARDED_BY(mutex_);
  bool ended_ GUARDED_BY(mutex_) = false;
};

}  // namespace pergola
