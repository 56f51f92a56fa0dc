// A rank's way to the coordinator's internal listener: the channel, the join token, and the one
// call that every rank may make. See coordinator_link.h and results_link.h for the streams.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "pergola/v1/worker.grpc.pb.h"
#include "pergola/v1/worker.pb.h"

namespace pergola {

// Thread-safe after construction.
class InternalClient {
 public:
  // `address` is host:port. Does not connect yet.
  InternalClient(const std::string& address, const std::string& join_token);

  v1::Worker::Stub& stub() { return *stub_; }
  const std::string& address() const { return address_; }
  // Puts the join token into a call's metadata.
  void Authorize(grpc::ClientContext* context) const;

  // Waits at most kFaultDeadlineMs: the caller is about to exit.
  absl::Status ReportFault(const v1::Fault& fault);
  static constexpr int kFaultDeadlineMs = 500;

 private:
  const std::string address_;
  const std::string join_token_;
  const std::shared_ptr<grpc::Channel> channel_;  // the stub is the second owner
  const std::unique_ptr<v1::Worker::Stub> stub_;
};

absl::Status FromGrpc(const grpc::Status& status);

// Time between attempts: grows from the first to the longest by half each time.
struct RedialOptions {
  int64_t first_ms = 100;
  int64_t longest_ms = 5000;
};
class Redial {
 public:
  explicit Redial(const RedialOptions& options) : options_(options), next_ms_(options.first_ms) {}
  int64_t NextDelayMs();
  void Reset() { next_ms_ = options_.first_ms; }

 private:
  const RedialOptions options_;
  int64_t next_ms_;
};

}  // namespace pergola
