#include "coordinator/link/token_check.h"

#include <openssl/crypto.h>

#include <iterator>

#include "absl/strings/str_cat.h"
#include "base/limits.h"

namespace pergola {

absl::Status TokenCheck::Check(const grpc::ServerContextBase& context) const {
  if (token_.empty()) return absl::OkStatus();
  const auto [first, last] = context.client_metadata().equal_range(kJoinTokenKey);
  const auto count = std::distance(first, last);
  if (count > 1) {
    return absl::UnauthenticatedError(
        absl::StrCat("the call carries ", count, " join tokens; it must be one"));
  }
  // The length is no secret: tokens are made of one length.
  const bool equal = count == 1 && first->second.size() == token_.size() &&
                     CRYPTO_memcmp(first->second.data(), token_.data(), token_.size()) == 0;
  return equal ? absl::OkStatus() : absl::UnauthenticatedError("wrong join token");
}

}  // namespace pergola
