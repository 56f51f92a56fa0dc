// Checked reads at an offset, from a file or from bytes in memory (tests and fuzzing). The only
// place of this folder that opens files. Nothing here believes a size: a read beyond the end is an
// error, never a short read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace pergola {

// Immutable; ReadAt may be called from several threads at once.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // For messages: the path.
  virtual const std::string& name() const = 0;
  virtual int64_t size() const = 0;
  // Fills `out` from `offset`. DATA_LOSS if the source ends before, INTERNAL if the read fails.
  virtual absl::Status ReadAt(int64_t offset, absl::Span<uint8_t> out) const = 0;
  // A hint that these bytes will be read soon: a file begins to fetch them, and does not wait.
  virtual void Prefetch(int64_t /*offset*/, int64_t /*bytes*/) const {}
};

// A regular file, its descriptor kept open. NOT_FOUND if it does not exist, INVALID_ARGUMENT if it
// is not a file.
absl::StatusOr<std::unique_ptr<ByteSource>> OpenFileSource(const std::string& path);

// Borrows `bytes`.
std::unique_ptr<ByteSource> MakeMemorySource(std::string name, absl::Span<const uint8_t> bytes);

// The whole file; INVALID_ARGUMENT if it is larger than `max_bytes`, NOT_FOUND if it does not
// exist.
absl::StatusOr<std::string> ReadWholeFile(const std::string& path, int64_t max_bytes);

// A name from a file, fit for a line of text: control characters and invalid bytes escaped, at most
// 120 characters.
std::string Printable(std::string_view text);

}  // namespace pergola
