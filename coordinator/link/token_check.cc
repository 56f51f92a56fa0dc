#include "coordinator/link/token_check.h"

#include <openssl/crypto.h>

#include "base/limits.h"

namespace pergola {

absl::Status TokenCheck::Check(const grpc::ServerContextBase& context) const {
  if (token_.empty()) return absl::OkStatus();
  const auto& metadata = context.client_metadata();
  const auto found = metadata.find(kJoinTokenKey);
  // The length is no secret: tokens are made of one length.
  const bool equal = found != metadata.end() && found->second.size() == token_.size() &&
                     CRYPTO_memcmp(found->second.data(), token_.data(), token_.size()) == 0;
  return equal ? absl::OkStatus() : absl::UnauthenticatedError("wrong join token");
}

}  // namespace pergola
