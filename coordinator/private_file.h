// The two small files that only their owner may read: the join token (read) and the run file
// (written).
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pergola {

// The token in `path`, line end removed. Refused: a file that others may read or write, no or more
// than 1,024 bytes, bytes that are not visible ASCII (it travels as gRPC metadata).
absl::StatusOr<std::string> ReadTokenFile(const std::string& path);

// The same check for a token from elsewhere; `source` names it.
absl::Status CheckToken(const std::string& token, const std::string& source);

struct CoordinatorRun {
  int64_t pid = 0;
  std::string public_address;
  std::string internal_address;
  std::string join_token_file;  // may be empty
  int64_t started_us = 0;       // since 1970
  std::string http_address;     // empty: none
};

// Writes JSON with mode 0600 beside `path` and renames it there: a reader sees a whole file or
// none.
absl::Status WriteRunFile(const std::string& path, const CoordinatorRun& run);

// Removes `path` if it still is the run file of process `pid`.
void RemoveRunFile(const std::string& path, int64_t pid);

}  // namespace pergola
