// Memory that the ranks of one stage share: a POSIX shared memory object between processes, plain
// heap between the threads of a test. Zeroed when made. Not for synchronisation; see
// shm_communicator.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pergola {

class SharedRegion {
 public:
  // For ranks that are threads of this process, or processes forked later if `bytes` come from
  // MapAnonymous.
  static std::shared_ptr<SharedRegion> OnHeap(int64_t bytes);
  // Shared with processes forked later. RESOURCE_EXHAUSTED if the memory cannot be had.
  static absl::StatusOr<std::shared_ptr<SharedRegion>> MapAnonymous(int64_t bytes);
  // Makes a new object of that name ("/pergola-..."), reserves its memory and maps it.
  // RESOURCE_EXHAUSTED naming the size if /dev/shm is too small. The name must be unlinked once all
  // have opened it.
  static absl::StatusOr<std::shared_ptr<SharedRegion>> Create(const std::string& name,
                                                              int64_t bytes);
  static absl::StatusOr<std::shared_ptr<SharedRegion>> Open(const std::string& name, int64_t bytes);
  static void Unlink(const std::string& name);

  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  SharedRegion(uint8_t* data, int64_t bytes, bool mapped)
      : data_(data), bytes_(bytes), mapped_(mapped) {}
  uint8_t* data_;
  int64_t bytes_;
  bool mapped_;
};

}  // namespace pergola
