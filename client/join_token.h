// The join token: what proves to the internal listener that a caller belongs here.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace pergola {

// 32 bytes of the kernel's randomness as 64 hex digits.
absl::StatusOr<std::string> MakeJoinToken();

// The token in `path`, white space at its end left out. INVALID_ARGUMENT if it is empty or longer
// than 4096 bytes.
absl::StatusOr<std::string> ReadJoinToken(const std::string& path);

}  // namespace pergola
