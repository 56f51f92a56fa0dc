#include "client/join_token.h"

#include <sys/random.h>

#include "absl/strings/ascii.h"
#include "base/status.h"
#include "client/files.h"

namespace pergola {

absl::StatusOr<std::string> MakeJoinToken() {
  unsigned char bytes[32];
  // Up to 256 bytes come whole or not at all (getrandom(2)).
  if (getrandom(bytes, sizeof(bytes), 0) != static_cast<ssize_t>(sizeof(bytes))) {
    return absl::UnavailableError("the kernel gave no random bytes for a join token");
  }
  std::string token;
  for (const unsigned char byte : bytes) absl::StrAppend(&token, absl::Hex(byte, absl::kZeroPad2));
  return token;
}

absl::StatusOr<std::string> ReadJoinToken(const std::string& path) {
  ASSIGN_OR_RETURN(std::string token, ReadSmallFile(path, 4096));
  absl::StripTrailingAsciiWhitespace(&token);
  if (token.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " holds no join token"));
  return token;
}

}  // namespace pergola
