// The join token that every call on the internal listener carries in its metadata (base/limits.h
// names the key).
#pragma once

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "grpcpp/server_context.h"

namespace pergola {

class TokenCheck {
 public:
  // An empty token admits everybody: only for a listener on loopback (server.cc refuses others).
  explicit TokenCheck(std::string token) : token_(std::move(token)) {}
  // UNAUTHENTICATED unless the call's metadata holds exactly one token, the right one; takes the
  // same time whatever differs.
  absl::Status Check(const grpc::ServerContextBase& context) const;

 private:
  const std::string token_;
};

}  // namespace pergola
