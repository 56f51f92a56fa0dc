// A gRPC error as lines for a person, with what google.rpc's details add.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace pergola {

// "INVALID_ARGUMENT", or "code 99" for what is not in the specification.
std::string CodeName(int code);

// "CODE: message", then one indented line per field violation, reason and retry delay. Details that
// do not decode are left out: they come from a peer.
std::string ErrorText(const grpc::Status& status);

// Whether the server said when to come back.
bool HasRetryInfo(const grpc::Status& status);

// The same code and ErrorText.
absl::Status ToAbslStatus(const grpc::Status& status);

}  // namespace pergola
