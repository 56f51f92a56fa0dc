// Small private files: a directory only this user can enter, files only this user can read, written
// whole or not at all. Not for large data.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace pergola {

// Creates `path` (parents too) with mode 0700, or accepts it if it is a real directory of this user
// that no other can enter. FAILED_PRECONDITION otherwise: somebody else may have put it there.
absl::Status MakePrivateDirectory(const std::string& path);

// Replaces `path` by a 0600 file with `content`; readers see the old or the new one.
absl::Status WritePrivateFile(const std::string& path, const std::string& content);

// Whether `path` can be written, so that a long run is not in vain. Leaves what is there as it is,
// and nothing where nothing was.
absl::Status CheckWritable(const std::string& path);

// The whole file. NOT_FOUND if there is none, INVALID_ARGUMENT if it is larger than `max_bytes`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t max_bytes);

}  // namespace pergola
