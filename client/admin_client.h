// The operator's calls to the internal listener, with the join token.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/client_context.h"
#include "pergola/v1/admin.grpc.pb.h"

namespace pergola {

class AdminClient {
 public:
  AdminClient(const std::string& address, std::string token);

  // Blocks up to `timeout`. Errors are the call's, as ErrorText says them.
  absl::StatusOr<v1::StatusResponse> Status(std::chrono::milliseconds timeout);
  // `timeout` is how long running sequences may take; the call takes up to 10 s more.
  absl::StatusOr<v1::DrainResponse> Drain(std::chrono::milliseconds timeout);

 private:
  std::unique_ptr<v1::Admin::Stub> stub_;
  std::string token_;
};

// Where the internal listener and its token file are: as the flags say, else as the run file says.
struct AdminTarget {
  std::string run_file;
  std::string connect_internal;
  std::string token_file;
};
// INVALID_ARGUMENT if only one of connect_internal and token_file is given; what ReadRunFile,
// CheckDialable and ReadJoinToken say.
absl::StatusOr<AdminClient> ConnectAdmin(const AdminTarget& target);

}  // namespace pergola
